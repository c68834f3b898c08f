package manifests

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// workloads are what runs pods.
func workloads(t *testing.T) []Object {
	t.Helper()
	return []Object{one(t, "Deployment", "belay-controller"), one(t, "DaemonSet", "belay-node"), one(t, "DaemonSet", "belay-host")}
}

// containers are all of a pod's, those first that end last.
func containers(pod Object) []Object {
	return slices.Concat(pod.Objects("initContainers"), pod.Objects("containers"))
}

// TestSidecarsEndLast: while the driver of a machine waits for volumes to be unstaged, kubelet must still know of it and be answered: its sidecars are such as
// Kubernetes ends after it (restartPolicy Always of an init container). Ended together, registrar first, nobody could unstage any more.
func TestSidecarsEndLast(t *testing.T) {
	pod := one(t, "DaemonSet", "belay-node").Pod()
	if own := pod.Objects("containers"); len(own) != 1 || own[0].Text("name") != "belay" {
		t.Errorf("%d containers end at once", len(own))
	}
	for _, w := range workloads(t) {
		for _, c := range w.Pod().Objects("initContainers") {
			if c.Text("restartPolicy") != "Always" {
				t.Errorf("%s %s is waited for", w, c.Text("name"))
			}
		}
	}
}

// pinned is an image with a version.
var pinned = regexp.MustCompile(`^[a-z0-9./-]+:v?[0-9]+\.[0-9]+\.[0-9]+$`)

func TestContainers(t *testing.T) {
	for _, w := range workloads(t) {
		for _, c := range containers(w.Pod()) {
			what := w.String() + " " + c.Text("name")
			if !pinned.MatchString(c.Text("image")) {
				t.Errorf("%s: image %q is not pinned", what, c.Text("image"))
			}
			if c.Text("terminationMessagePolicy") != "FallbackToLogsOnError" {
				t.Errorf("%s: its last words are lost", what)
			}
			for _, r := range []string{"cpu", "memory"} {
				if c.At("resources", "requests", r) == nil {
					t.Errorf("%s: asks for no %s", what, r)
				}
			}
			checkContext(t, what, c)
		}
	}
}

// checkContext lets only Belay itself be privileged, on machines.
func checkContext(t *testing.T, what string, c Object) {
	t.Helper()
	s := func(path ...string) any { return c.At(append([]string{"securityContext"}, path...)...) }
	if s("readOnlyRootFilesystem") != true {
		t.Errorf("%s may write into its image", what)
	}
	if c.Text("name") == "belay" && strings.HasPrefix(what, "DaemonSet/") {
		return
	}
	if s("privileged") != nil || s("allowPrivilegeEscalation") != false || s("seccompProfile", "type") != "RuntimeDefault" ||
		!slices.Equal(c.Texts("securityContext", "capabilities", "drop"), []string{"ALL"}) || s("capabilities", "add") != nil {
		t.Errorf("%s has more rights than none: %v", what, s())
	}
}

// TestSELinux: where it enforces, a confined container of the usual type can use neither the socket of a privileged one nor a directory of the machine: the
// registrar would never tell kubelet of the driver.
func TestSELinux(t *testing.T) {
	reaching := 0
	for _, w := range workloads(t) {
		pod := w.Pod()
		for _, c := range containers(pod) {
			reaches := slices.ContainsFunc(c.Objects("volumeMounts"), func(m Object) bool {
				return named(t, pod.Objects("volumes"), m.Text("name")).At("hostPath") != nil
			})
			if !reaches {
				continue
			}
			reaching++
			if c.At("securityContext", "privileged") != true && c.Text("securityContext", "seLinuxOptions", "type") != "spc_t" {
				t.Errorf("%s %s is kept from the machine's directories", w, c.Text("name"))
			}
		}
	}
	if reaching != 4 {
		t.Errorf("%d containers have directories of the machine", reaching)
	}
}

func TestPods(t *testing.T) {
	for _, w := range workloads(t) {
		pod := w.Pod()
		machine := w.Kind() == "DaemonSet"
		if pod.At("hostNetwork") == true || pod.At("hostIPC") != nil || (pod.At("hostPID") == true) != machine {
			t.Errorf("%s: hostNetwork %v, hostPID %v", w, pod.At("hostNetwork"), pod.At("hostPID"))
		}
		priority := map[bool]string{true: "system-node-critical", false: "system-cluster-critical"}[machine]
		if pod.Text("priorityClassName") != priority {
			t.Errorf("%s has priority %q, want %s", w, pod.Text("priorityClassName"), priority)
		}
		if pod.Text("nodeSelector", "kubernetes.io/os") != "linux" {
			t.Errorf("%s runs anywhere", w)
		}
	}
	if s := one(t, "Deployment", "belay-controller").Pod(); s.At("securityContext", "runAsNonRoot") != true || s.At("securityContext", "runAsUser") == 0 {
		t.Error("the controller runs as root")
	}
}

// TestNothingEndsTheHost: its end takes devices away, so nothing but a person ends it, and then it waits.
func TestNothingEndsTheHost(t *testing.T) {
	w := one(t, "DaemonSet", "belay-host")
	if w.Text("spec", "updateStrategy", "type") != "OnDelete" {
		t.Error("an update of the manifests would end the host")
	}
	c := named(t, containers(w.Pod()), "belay")
	for _, probe := range []string{"livenessProbe", "startupProbe"} {
		if c.At(probe) != nil {
			t.Errorf("a %s that fails would end the host", probe)
		}
	}
	if c.At("resources", "limits") != nil {
		t.Error("at a limit the kernel would end an engine")
	}
	checkWaits(t, w, "host")
}

// checkWaits wants the preStop hook, and time for it.
func checkWaits(t *testing.T, w Object, role string) {
	t.Helper()
	const day = 24 * 3600
	if grace, _ := w.Pod().At("terminationGracePeriodSeconds").(int); grace < day {
		t.Errorf("%s waits %d s for staged volumes, then takes their devices away", w, grace)
	}
	c := named(t, containers(w.Pod()), "belay")
	if got := c.Texts("lifecycle", "preStop", "exec", "command"); !slices.Equal(got, []string{"/usr/bin/belay", "prestop", role}) {
		t.Errorf("%s: preStop is %v", w, got)
	}
}

func TestNode(t *testing.T) {
	w := one(t, "DaemonSet", "belay-node")
	checkWaits(t, w, "node")
	c := named(t, containers(w.Pod()), "belay")
	if c.At("resources", "limits", "memory") != nil {
		t.Error("at a limit the kernel would end a detach in progress")
	}
	if _, ok := c.At("livenessProbe", "terminationGracePeriodSeconds").(int); !ok {
		t.Error("a node that hangs would be waited for as long as staged volumes are")
	}
	if c.At("readinessProbe") == nil {
		t.Error("the controller would call nodes that are not ready")
	}
	if m := named(t, c.Objects("volumeMounts"), "kubelet"); m.Text("mountPropagation") != "Bidirectional" {
		t.Error("what the node mounts is not seen by the machine")
	}
}

// TestMountsAreNotPinned: a mount that is copied into a container's namespace and does not follow the machine's holds its filesystem for ever, and a
// detach of it is refused for ever.
func TestMountsAreNotPinned(t *testing.T) {
	for _, name := range []string{"belay-node", "belay-host"} {
		pod := one(t, "DaemonSet", name).Pod()
		for _, c := range containers(pod) {
			for _, m := range c.Objects("volumeMounts") {
				path := named(t, pod.Objects("volumes"), m.Text("name")).Text("hostPath", "path")
				if path == "/var/lib/kubelet" && name == "belay-host" {
					t.Errorf("%s %s has kubelet's directory, which it does not need", name, c.Text("name"))
				}
				if (path == "/var/lib/kubelet" || strings.HasPrefix(path, "/var/lib/belay")) && m.Text("mountPropagation") == "" {
					t.Errorf("%s %s: mounts below %s are copied and stay", name, c.Text("name"), path)
				}
			}
		}
	}
}

// TestHostAndNodeShareTheMachine: they meet in these directories.
func TestHostAndNodeShareTheMachine(t *testing.T) {
	for _, path := range []string{"/dev", "/run/belay", "/var/lib/belay"} {
		for _, name := range []string{"belay-node", "belay-host"} {
			pod := one(t, "DaemonSet", name).Pod()
			c := named(t, containers(pod), "belay")
			if !slices.ContainsFunc(c.Objects("volumeMounts"), func(m Object) bool {
				return m.Text("mountPath") == path && named(t, pod.Objects("volumes"), m.Text("name")).Text("hostPath", "path") == path
			}) {
				t.Errorf("%s does not have the machine's %s", name, path)
			}
		}
	}
}

// TestPortsAndProbes: a probe of a port that no container has fails for ever.
func TestPortsAndProbes(t *testing.T) {
	for _, w := range workloads(t) {
		ports, numbers := map[string]bool{}, map[any]bool{}
		for _, c := range containers(w.Pod()) {
			for _, p := range c.Objects("ports") {
				if ports[p.Text("name")] || numbers[p.At("containerPort")] {
					t.Errorf("%s has port %v twice", w, p)
				}
				ports[p.Text("name")], numbers[p.At("containerPort")] = true, true
			}
		}
		for _, c := range containers(w.Pod()) {
			for _, probe := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
				if port := c.Text(probe, "httpGet", "port"); port != "" && !ports[port] {
					t.Errorf("%s %s: %s asks port %s, which nobody has", w, c.Text("name"), probe, port)
				}
			}
		}
	}
}
