package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// reply is what the fake kubectl answers to a command line.
type reply struct {
	Out, Err string
	Code     int
	Socket   string // not empty: belay itself answers what stands behind "--", from the server at this socket
}

// cluster is a fake kubectl in PATH, and what it answers.
type cluster struct {
	t       *testing.T
	dir     string
	replies map[string][]reply // by command line; the last answers what is asked oftener
}

// fakeDir is how the fake kubectl is told where its answers are.
const fakeDir = "FAKE_KUBECTL_DIR"

// Command lines that many verbs need.
const (
	askWhoami      = "auth whoami -o json"
	askPVs         = "get pv -o json"
	askAttachments = "get volumeattachments.storage.k8s.io -o json"
	askVolumes     = "exec --namespace=belay-system deploy/belay-controller --container=belay -- /usr/bin/belay volumes --socket=" + defaultControllerAdmin + " --output=json"
	askVersion     = "exec --namespace=belay-system deploy/belay-controller --container=belay -- /usr/bin/belay version --socket=" + defaultControllerAdmin + " --output=json"
)

// asking is the command line of another verb that the controller's pod answers.
func asking(verb, args string) string {
	return "exec --namespace=belay-system deploy/belay-controller --container=belay -- /usr/bin/belay " + verb + " --socket=" + defaultControllerAdmin + " " + args
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), replies: map[string][]reply{}}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, filepath.Join(c.dir, "kubectl")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", c.dir)
	t.Setenv(fakeDir, c.dir)
	t.Setenv("KUBECTL", "")
	return c
}

// on adds an answer.
func (c *cluster) on(command string, r reply) { c.replies[command] = append(c.replies[command], r) }

// shop has claim data of namespace shop, bound to volume pvc-1@n1, which is attached.
func shop(t *testing.T) *cluster {
	c := newCluster(t)
	c.on("get pvc data --namespace=shop -o json", reply{Out: claimJSON("shop", "data", "Bound", "pv-1")})
	c.on("get pv pv-1 -o json", reply{Out: pvJSON("pv-1", "csi.belay.storage", "pvc-1@n1", "data")})
	c.on(askPVs, reply{Out: list(pvJSON("pv-1", "csi.belay.storage", "pvc-1@n1", "data"), pvJSON("pv-2", "csi.belay.storage", "pvc-2@n2", "logs"),
		pvJSON("ebs", "ebs.csi.aws.com", "vol-1", "other"))})
	c.on(askVolumes, reply{Out: volumesJSON(t, attached("pvc-1", "n1", 7), attached("pvc-2", "n2", 3))})
	return c
}

// run runs kubectl belay, with nobody at a terminal.
func (c *cluster) run(args ...string) (code int, out, errOut string) {
	c.t.Helper()
	return c.runWith(strings.NewReader(""), args...)
}

func (c *cluster) runWith(in io.Reader, args ...string) (code int, out, errOut string) {
	c.t.Helper()
	c.save()
	var o, e bytes.Buffer
	root, words := called(append([]string{"/usr/local/bin/kubectl-belay"}, args...))
	code = execute(c.t.Context(), root, words, in, &o, &e)
	return code, o.String(), e.String()
}

func (c *cluster) save() {
	raw, err := json.Marshal(c.replies)
	if err == nil {
		err = os.WriteFile(filepath.Join(c.dir, "replies"), raw, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// calls are the command lines so far.
func (c *cluster) calls() []string {
	raw, err := os.ReadFile(filepath.Join(c.dir, "calls"))
	if err != nil && !os.IsNotExist(err) {
		c.t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n")
}

// asked checks that exactly these command lines were run, in this order.
func (c *cluster) asked(want ...string) {
	c.t.Helper()
	if got := c.calls(); !slices.Equal(got, want) {
		c.t.Errorf("kubectl was asked\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// fakeKubectl is kubectl where the test binary is called so.
func fakeKubectl(args []string) int {
	dir, command := os.Getenv(fakeDir), strings.Join(args, " ")
	var replies map[string][]reply
	raw, err := os.ReadFile(filepath.Join(dir, "replies"))
	if err == nil {
		err = json.Unmarshal(raw, &replies)
	}
	before, _ := os.ReadFile(filepath.Join(dir, "calls")) // none at first
	nth := 0
	for line := range strings.Lines(string(before)) {
		if line == command+"\n" {
			nth++
		}
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "calls"), append(before, command+"\n"...), 0o600)
	}
	all := replies[command]
	if err != nil || len(all) == 0 {
		fmt.Fprintf(os.Stderr, "fake kubectl: not expected: %q, %v\n", command, err)
		return 99
	}
	return answer(args, all[min(nth, len(all)-1)])
}

func answer(args []string, r reply) int {
	if r.Socket != "" {
		behind := slices.Clone(args[slices.Index(args, "--")+2:])
		behind[slices.Index(behind, "--socket="+defaultControllerAdmin)] = "--socket=" + r.Socket
		return run(context.Background(), behind, os.Stdin, os.Stdout, os.Stderr)
	}
	fmt.Fprint(os.Stdout, r.Out)
	fmt.Fprint(os.Stderr, r.Err)
	return r.Code
}

// What kubectl prints of the cluster's objects.

func list(items ...string) string {
	return `{"apiVersion":"v1","kind":"List","items":[` + strings.Join(items, ",") + `],"metadata":{"resourceVersion":""}}`
}

func claimJSON(namespace, name, phase, pv string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"namespace":%q,"name":%q,"uid":"u1"},
		"spec":{"accessModes":["ReadWriteOnce"],"volumeName":%q},"status":{"phase":%q}}`, namespace, name, pv, phase)
}

func pvJSON(name, driver, handle, claim string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"PersistentVolume","metadata":{"name":%q},"spec":{"capacity":{"storage":"1Gi"},
		"claimRef":{"kind":"PersistentVolumeClaim","namespace":"shop","name":%q},"csi":{"driver":%q,"volumeHandle":%q}},"status":{"phase":"Bound"}}`, name, claim, driver, handle)
}

func volumesJSON(t *testing.T, all ...admin.Volume) string {
	t.Helper()
	raw, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func detached(id volume.ID, node volume.NodeID) admin.Volume {
	return admin.Volume{At: node, Volume: engine.Volume{
		Spec: engine.Spec{ID: id, Name: string(id), Size: volume.GiB}, State: engine.Healthy, Sealed: true, Head: []byte("head"),
		Replicas: []engine.Replica{{ID: "a", State: engine.InSync}, {ID: "b", State: engine.InSync}},
	}}
}

func attached(id volume.ID, node volume.NodeID, epoch volume.Epoch) admin.Volume {
	v := detached(id, node)
	v.Sealed, v.Staged, v.Attachment = false, true, &volume.Attachment{Volume: id, Node: node, Epoch: epoch}
	return v
}

func TestCalledBy(t *testing.T) {
	for name, want := range map[string]string{"belay": "belay", "/usr/bin/kubectl-belay": "kubectl belay", "kubectl_complete-belay": "kubectl belay", "/x/other": "belay"} {
		if root, _ := called([]string{name}); root.CommandPath() != want {
			t.Errorf("%s is %q", name, root.CommandPath())
		}
	}
}

func TestKubectlVerbsExplainThemselves(t *testing.T) {
	c := newCluster(t)
	code, out, _ := c.run()
	if code != exitOK || !strings.Contains(out, "Examples:") || !strings.Contains(out, "kubectl belay [command]") {
		t.Errorf("exit %d\n%s", code, out)
	}
	for _, cmd := range newKubectlRoot().Commands() {
		if len(cmd.Long) < 40 || !strings.Contains(cmd.Example, "kubectl belay "+cmd.Name()) || cmd.Short == "" || cmd.GroupID == "" {
			t.Errorf("%s: long %q, example %q", cmd.Name(), cmd.Long, cmd.Example)
		}
		if strings.Contains(cmd.Long, "belay serve") || cmd.Flags().Lookup("socket") != nil || cmd.Flags().Lookup("output") == nil {
			t.Errorf("%s speaks of a machine's own server: %s", cmd.Name(), cmd.Long)
		}
	}
}

func TestKubectlUsage(t *testing.T) {
	c := newCluster(t)
	for args, says := range map[string]string{
		"frob":                                   "frob",
		"why":                                    "name one volume",
		"why a b":                                "name one volume",
		"why node/n1":                            "is a node",
		"why deploy/x":                           "want pvc/NAME",
		"why pvc/":                               "want pvc/NAME",
		"why pvc/a/b":                            "want pvc/NAME",
		"volumes extra":                          "extra",
		"volumes -o xml":                         "xml",
		"volumes --frob":                         "frob",
		"fence":                                  "name one node or one volume",
		"fence node/n1":                          "--reason",
		"fence deploy/x --reason y":              "want pvc/NAME",
		"fence node/n1 --reason y --wait=-1s":    "--wait",
		"upgrade":                                "name one volume",
		"upgrade pvc/a --all":                    "not both",
		"upgrade --node n1 --all":                "not both",
		"upgrade --all --to belay-2":             "absolute path",
		"upgrade --all --to /b/belay --pace=-1s": "--pace",
	} {
		code, _, errOut := c.run(strings.Fields(args)...)
		if code != exitUsage || !strings.Contains(errOut, says) || !strings.HasPrefix(errOut, "kubectl belay: ") || !strings.Contains(errOut, "See 'kubectl belay") {
			t.Errorf("kubectl belay %s: exit %d, %q", args, code, errOut)
		}
	}
	c.asked("")
}
