package e2e

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// writer is a workload that appends numbers to a file on its volume, each synced before it is told.
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
              i=$(tail -n 1 /data/log 2>/dev/null); i=${i:-0}
              while :; do
                i=$((i + 1))
                echo $i | dd of=/data/log oflag=append conv=notrunc,fsync 2>/dev/null || { echo "FAILED at $i"; exit 1; }
                echo $i
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

// said are the numbers that a pod's present container has told of.
func (w writer) said(pod string) ([]int, error) {
	text, err := w.tryKubectl("logs", pod)
	if err != nil {
		return nil, err
	}
	return numbers(text)
}

func numbers(text string) (out []int, err error) {
	for line := range strings.Lines(text) {
		n, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return out, fmt.Errorf("%q is no number", line)
		}
		out = append(out, n)
	}
	return out, nil
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
	before, err := w.said(w.running().Metadata.Name)
	if err != nil {
		w.Fatal(err)
	}
	w.eventually("the writer goes on", func() error { return w.wrote(len(before) + 5) })
}

// intact fails the test unless the file holds 1, 2, 3 … and every one of told, numbers that a pod has told of.
func (w writer) intact(told []int) {
	w.Helper()
	p := w.running()
	text := w.kubectl("exec", p.Metadata.Name, "--", "cat", "/data/log")
	have, err := numbers(text)
	if err != nil {
		w.Fatal(err)
	}
	for i, n := range have {
		if n != i+1 {
			w.Fatalf("number %d of the file is %d", i+1, n)
		}
	}
	if len(told) > 0 && told[len(told)-1] > len(have) {
		w.Fatalf("%d was synced and told of, and the file ends at %d", told[len(told)-1], len(have))
	}
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
