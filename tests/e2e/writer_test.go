package e2e

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// writer is a workload that appends lines to a file on its volume, each synced before it is told. A line is its number and the name of the process: what was
// lost and written again is told from what was kept.
type writer struct {
	*cluster
	name string
}

const writerManifest = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[1]s}
spec:
  storageClassName: %[2]s
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: %[3]s}}
---
apiVersion: apps/v1
kind: %[4]s
metadata: {name: %[1]s}
spec:
  serviceName: %[1]s
  replicas: 1
  selector: {matchLabels: {app: %[1]s}}
  %[5]s
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 2
      nodeSelector: {%[6]s}
      tolerations: [{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 5}]
      containers:
        - name: writer
          image: lab.local/busybox:1.37.0-2
          command:
            - sh
            - -c
            - |
              trap 'exit 0' TERM
              me=$(cat /proc/sys/kernel/random/uuid)
              last=$(tail -n 1 /data/log 2>/dev/null); i=${last%%%% *}; i=${i:-0}
              while :; do
                i=$((i + 1))
                echo $i $me | dd of=/data/log oflag=append conv=notrunc,fsync 2>/dev/null || { echo "FAILED at $i"; exit 1; }
                echo $i $me
                sleep 0.1
              done
          volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: %[1]s}}]
`

// shape is how a writer is run.
type shape struct {
	class string // StorageClass
	size  string
	kind  string // Deployment or StatefulSet
	node  string // where it must run; "": anywhere
}

func (s shape) manifest(name string) string {
	s.class, s.size, s.kind = or(s.class, "belay"), or(s.size, "512Mi"), or(s.kind, "Deployment")
	strategy := "strategy: {type: Recreate}"
	selector := ""
	if s.node != "" {
		selector = "kubernetes.io/hostname: " + s.node
	}
	text := fmt.Sprintf(writerManifest, name, s.class, s.size, s.kind, strategy, selector)
	if s.kind == "StatefulSet" {
		return strings.Replace(text, strategy, "", 1)
	}
	return strings.Replace(text, "serviceName: "+name, "", 1)
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// write starts a writer and waits until it has written something.
func (c *cluster) write(name string, s shape) writer {
	c.Helper()
	c.apply(s.manifest(name))
	w := writer{c, name}
	c.eventually("the writer writes", func() error { return w.wrote(3) })
	return w
}

// pods are the writer's, as the cluster lists them.
func (w writer) pods() []pod {
	w.Helper()
	var all struct{ Items []pod }
	w.get(&all, "pods", "-l", "app="+w.name)
	return all.Items
}

// pod is the one that is ready.
func (w writer) pod() (pod, error) {
	w.Helper()
	i := slices.IndexFunc(w.pods(), pod.ready)
	if i < 0 {
		return pod{}, fmt.Errorf("no pod of %s is ready", w.name)
	}
	return w.pods()[i], nil
}

// running is the pod that must be ready.
func (w writer) running() pod {
	w.Helper()
	var p pod
	w.eventually("a pod of the writer is ready", func() (err error) { p, err = w.pod(); return err })
	return p
}

// lines are what a writer has written or told of: the number of each, and who wrote it.
type lines []string

// said is what a pod's present container has told of.
func (w writer) said(pod string) (lines, error) {
	text, err := w.tryKubectl("logs", pod)
	if err != nil {
		return nil, err
	}
	return linesOf(text)
}

// told is what the pod has told of, which must be known.
func (w writer) told(p pod) lines {
	w.Helper()
	said, err := w.said(p.Metadata.Name)
	if err != nil {
		w.Fatal(err)
	}
	return said
}

func linesOf(text string) (out lines, err error) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if numberOf(line) == 0 {
			return out, fmt.Errorf("%q is not what a writer writes", line)
		}
		out = append(out, line)
	}
	return out, nil
}

// numberOf is the one that a line begins with, 0 where it begins with none.
func numberOf(line string) int {
	digits, _, _ := strings.Cut(line, " ")
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0
	}
	return n
}

// wrote fails until the ready pod has told of n numbers.
func (w writer) wrote(n int) error {
	p, err := w.pod()
	if err != nil {
		return err
	}
	said, err := w.said(p.Metadata.Name)
	if err == nil && len(said) < n {
		err = fmt.Errorf("%d numbers are written", len(said))
	}
	return err
}

// goesOn waits until the ready pod has written more than it has now.
func (w writer) goesOn() {
	w.Helper()
	before := w.told(w.running())
	w.eventually("the writer goes on", func() error { return w.wrote(len(before) + 5) })
}

// intact fails the test unless the file holds 1, 2, 3 … and each line of told, what pods have told of, as it was written.
func (w writer) intact(told lines) {
	w.Helper()
	have, err := linesOf(w.kubectl("exec", w.running().Metadata.Name, "--", "cat", "/data/log"))
	if err != nil {
		w.Fatal(err)
	}
	if err := have.hold(told); err != nil {
		w.Fatal(err)
	}
}

func (have lines) hold(told lines) error {
	for i, line := range have {
		if numberOf(line) != i+1 {
			return fmt.Errorf("line %d of the file is %q", i+1, line)
		}
	}
	for _, line := range told {
		switch n := numberOf(line); {
		case n > len(have):
			return fmt.Errorf("%q was synced and told of, and the file ends at %d", line, len(have))
		case have[n-1] != line:
			return fmt.Errorf("%q was synced and told of, and the file has %q: it was lost, and a later writer wrote its number again", line, have[n-1])
		}
	}
	return nil
}

// again starts the writer again: it goes on, and has what was told before.
func (w writer) again(told lines) {
	w.Helper()
	w.scale("Deployment", 1)
	w.goesOn()
	w.intact(told)
}

// scale sets how many pods there should be.
func (w writer) scale(kind string, n int) {
	w.Helper()
	w.kubectl("scale", strings.ToLower(kind)+"/"+w.name, "--replicas="+strconv.Itoa(n))
}

// handle is what Belay calls the volume: its ID and its node.
func (w writer) handle() string {
	w.Helper()
	var pv struct {
		Spec struct {
			CSI struct {
				VolumeHandle string `json:"volumeHandle"`
			} `json:"csi"`
		} `json:"spec"`
	}
	if !w.get(&pv, "pv", w.volumeName(w.name)) {
		w.Fatal("no PersistentVolume")
	}
	return pv.Spec.CSI.VolumeHandle
}

// TestLostLinesAreFound, also where a later writer has written their numbers again.
func TestLostLinesAreFound(t *testing.T) {
	told := lines{"2 a", "3 a"}
	for text, whole := range map[string]bool{
		"1 a\n2 a\n3 a\n4 b\n": true, "1 a\n2 a\n": false, "1 a\n2 a\n3 b\n4 b\n": false, "1 a\n3 a\n": false, "": false,
	} {
		have, err := linesOf(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := have.hold(told); (err == nil) != whole {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := linesOf("1 a\nFAILED at 2\n"); err == nil {
		t.Error("a failure is taken for a line")
	}
}
