package manifests

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sidecar is what is known of an upstream image: the version whose sources were read, and those of its flags that may be used here. A flag that a
// program does not know ends it at once. Another version wants this list, and its rules in the chart's controller-rbac.yaml, to be looked at again.
type sidecar struct {
	version string
	flags   []string
}

// common are the flags of csi-lib-utils' standardflags, v0.24 and v0.25.
var common = []string{"csi-address", "http-endpoint", "leader-election", "leader-election-lease-duration", "leader-election-renew-deadline",
	"leader-election-retry-period", "kube-api-qps", "kube-api-burst", "metrics-path", "v"}

var sidecars = map[string]sidecar{
	"csi-provisioner": {"v6.4.0", []string{"timeout", "retry-interval-start", "retry-interval-max", "worker-threads", "strict-topology", "immediate-topology",
		"enable-capacity", "capacity-ownerref-level",
		"capacity-poll-interval", "capacity-threads", "kube-api-capacity-qps", "kube-api-capacity-burst", "extra-create-metadata", "default-fstype", "snapshot-orphan-sweep-interval"}},
	"csi-attacher": {"v4.13.0", []string{"timeout", "retry-interval-start", "retry-interval-max", "worker-threads", "reconcile-sync", "default-fstype",
		"max-entries"}},
	"csi-resizer":               {"v2.3.0", []string{"resize-timeout", "modify-timeout", "retry-interval-start", "retry-interval-max", "workers", "handle-volume-inuse-error"}},
	"csi-node-driver-registrar": {"v2.17.0", []string{"csi-address", "kubelet-registration-path", "timeout", "http-endpoint", "v"}},
	"livenessprobe":             {"v2.19.0", []string{"csi-address", "probe-timeout", "http-endpoint", "v"}},
}

func TestSidecars(t *testing.T) {
	seen := map[string]bool{}
	for _, w := range workloads(t) {
		for _, c := range containers(w.Pod()) {
			if c.Text("name") == "belay" {
				continue
			}
			image, version, _ := strings.Cut(strings.TrimPrefix(c.Text("image"), "registry.k8s.io/sig-storage/"), ":")
			known, ok := sidecars[image]
			if !ok || known.version != version {
				t.Errorf("%s %s is not one whose sources were read: want %s", image, version, known.version)
			}
			seen[image] = true
			checkFlags(t, image, known, c.Texts("args"))
		}
	}
	if len(seen) != len(sidecars) {
		t.Errorf("only %v are there", seen)
	}
}

func checkFlags(t *testing.T, image string, known sidecar, args []string) {
	t.Helper()
	allowed := known.flags
	if slices.Contains([]string{"csi-provisioner", "csi-attacher", "csi-resizer"}, image) {
		allowed = append(slices.Clone(allowed), common...)
		if !slices.Contains(args, "--leader-election") {
			t.Errorf("%s: two replicas would both work", image)
		}
	}
	for _, arg := range args {
		flag, _, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		if !strings.HasPrefix(arg, "--") || !slices.Contains(allowed, flag) {
			t.Errorf("%s has no flag %s", image, arg)
		}
	}
}

// TestSocketsAgree: a sidecar that waits at another path waits for ever.
func TestSocketsAgree(t *testing.T) {
	const socket = "/csi/csi.sock"
	for _, w := range workloads(t)[:2] {
		for _, c := range containers(w.Pod()) {
			want := "--csi-address=" + socket
			if c.Text("name") == "belay" {
				want = "--endpoint=unix://" + socket
			}
			if !slices.Contains(c.Texts("args"), want) {
				t.Errorf("%s %s has no %s", w, c.Text("name"), want)
			}
		}
	}
	const registered = "--kubelet-registration-path=/var/lib/kubelet/plugins/csi.belay.storage/csi.sock"
	pod := one(t, "DaemonSet", "belay-node").Pod()
	if !slices.Contains(named(t, containers(pod), "csi-node-driver-registrar").Texts("args"), registered) {
		t.Errorf("kubelet is not told %s", registered)
	}
	if got := named(t, pod.Objects("volumes"), "plugin").Text("hostPath", "path"); got != "/var/lib/kubelet/plugins/csi.belay.storage" {
		t.Errorf("the socket lies in %s, and kubelet looks elsewhere", got)
	}
}

// TestPatience: the settings that fit a driver which refuses.
func TestPatience(t *testing.T) {
	c := named(t, one(t, "Deployment", "belay-controller").Pod().Objects("containers"), "csi-attacher")
	for _, want := range []string{"--timeout=60s", "--retry-interval-max=15s", "--worker-threads=100"} {
		if !slices.Contains(c.Texts("args"), want) {
			t.Errorf("the attacher does not have %s: %v", want, c.Texts("args"))
		}
	}
}

// TestBelayKnowsItsFlags: every command line of Belay in the manifests, the optional parts too, is one that the program of this tree understands.
func TestBelayKnowsItsFlags(t *testing.T) {
	program := filepath.Join(t.TempDir(), "belay")
	if out, err := exec.Command("go", "build", "-o", program, "../../cmd/belay").CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	lines := [][]string{{"controller", "--manage-certificates=false", "--fence-expired-leases"}, {"node", "--store=/var/lib/belay/stores/a"}}
	for _, w := range workloads(t) {
		c := named(t, containers(w.Pod()), "belay")
		lines = append(lines, c.Texts("args"))
		if hook := c.Texts("lifecycle", "preStop", "exec", "command"); len(hook) > 0 {
			lines = append(lines, hook[1:])
		}
	}
	for _, line := range lines {
		// Help comes after the flags were understood, and before anything is done.
		if out, err := exec.Command(program, append(slices.Clone(line), "--help")...).CombinedOutput(); err != nil {
			t.Errorf("belay %s: %v: %s", strings.Join(line, " "), err, out)
		}
	}
}
