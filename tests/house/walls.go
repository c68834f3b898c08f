package house

import (
	"slices"
	"strings"
)

// Below lists, for each package, the packages of ours that it may import. Imports point down. A package that is
// not here has no place yet: give it one, with the reason.
var Below = map[string][]string{
	// The vocabulary, the door to the disk and the line between processes are leaves: everything may rest on them.
	"pkg/volume": {},
	"pkg/locks":  {},
	"pkg/mutant": {},
	"pkg/vfs":    {},
	"pkg/wire":   {},
	"pkg/mtls":   {},
	// What happened, for people: everybody tells it through callbacks that cmd wires, so only who shows it knows of it.
	"pkg/history": {"pkg/volume", "pkg/vfs"},

	// The contract and what is written in its words.
	"pkg/engine":            {"pkg/volume"},
	"pkg/engine/enginetest": {"pkg/engine", "pkg/volume", "pkg/vfs"},
	"pkg/receipt":           {"pkg/engine", "pkg/volume", "pkg/vfs"},

	// What stands beside the column: devices, mounts and the engines. An engine never learns what a receipt says or
	// what CSI asked.
	"pkg/device": {"pkg/volume"},
	// mount is what the gate's Releaser is made of, so it speaks the gate's words; the gate itself knows the interface only.
	"pkg/mount":         {"pkg/detach", "pkg/engine", "pkg/volume"},
	"pkg/mirror/quorum": {"pkg/mutant", "pkg/volume"},
	"pkg/mirror/digest": {"pkg/mirror/quorum", "pkg/volume"},
	"pkg/mirror/store":  {"pkg/locks", "pkg/mirror/digest", "pkg/mirror/quorum", "pkg/volume", "pkg/vfs"},
	// host runs the processes of any engine, so it knows the contract and no engine.
	"pkg/host": {"pkg/mutant", "pkg/locks", "pkg/vfs", "pkg/device", "pkg/engine", "pkg/volume", "pkg/wire"},
	"pkg/mirror": {"pkg/mutant", "pkg/mirror/store", "pkg/mirror/digest", "pkg/mirror/quorum", "pkg/engine", "pkg/device", "pkg/host",
		"pkg/locks", "pkg/volume", "pkg/vfs", "pkg/wire"},

	// The column. The gate sees engines through the contract only; the servers see the gate.
	"pkg/detach": {"pkg/mutant", "pkg/locks", "pkg/engine", "pkg/receipt", "pkg/volume", "pkg/vfs"},
	"pkg/driver": {"pkg/detach", "pkg/engine", "pkg/receipt", "pkg/mount", "pkg/volume"},
	"pkg/admin":  {"pkg/detach", "pkg/engine", "pkg/history", "pkg/receipt", "pkg/volume", "pkg/wire"},

	// What Belay does in a Kubernetes cluster. It tells what the gates of the nodes say, and never decides; kubetest is its API server in tests.
	"pkg/kube":          {"pkg/admin", "pkg/detach", "pkg/engine", "pkg/kube/kubetest", "pkg/mtls", "pkg/receipt", "pkg/volume"},
	"pkg/kube/kubetest": {},

	// Measuring is wired in cmd alone, so nothing measured knows of it and it knows the vocabulary only.
	"pkg/telemetry": {"pkg/volume"},
}

// wall is a rule about what may be imported where.
type wall struct {
	reason string
	what   func(imported string) bool
	// within are the directories whose files may. tests may always; test files beside the code count as the code.
	within []string
}

// Walls are the rules about libraries and about engines.
var Walls = []wall{
	{
		reason: "only cmd knows which engines exist; everyone else sees pkg/engine, so that an engine can be added without touching the gate",
		what:   ours("pkg/mirror", "pkg/ceph", "pkg/longhorn"), within: []string{"cmd", "pkg/mirror", "pkg/ceph", "pkg/longhorn"},
	},
	{
		reason: "CSI types and gRPC codes live in pkg/driver, and cmd wires connections: the rest speaks of volumes and errors, not of calls",
		what:   under("github.com/container-storage-interface/spec", "github.com/kubernetes-csi", "google.golang.org/grpc"), within: []string{"pkg/driver", "cmd"},
	},
	{
		reason: "client-go lives in pkg/kube: the rest runs without a cluster",
		what:   under("k8s.io/client-go", "k8s.io/api", "k8s.io/apimachinery", "sigs.k8s.io"), within: []string{"pkg/kube"},
	},
	{
		reason: "these link every API group in, and each engine process pays for it in memory and start time: see pkg/kube/DESIGN.md",
		what:   under("k8s.io/client-go/kubernetes", "k8s.io/client-go/informers", "k8s.io/client-go/tools/leaderelection", "k8s.io/client-go/tools/events"), within: nil,
	},
	{
		reason: "Prometheus and OpenTelemetry live in pkg/telemetry: packages report through callbacks",
		what:   under("github.com/prometheus", "go.opentelemetry.io"), within: []string{"pkg/telemetry"},
	},
	{
		reason: "flags and verbs live in cmd",
		what:   under("github.com/spf13", "github.com/schollz"), within: []string{"cmd"},
	},
	{
		reason: "nothing imports tests: they may know everything, so whoever imports them would too",
		what:   ours("tests"), within: nil,
	},
}

func ours(dirs ...string) func(string) bool {
	for i, d := range dirs {
		dirs[i] = module + "/" + d
	}
	return under(dirs...)
}

func under(prefixes ...string) func(string) bool {
	return func(imported string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return within(imported, p) })
	}
}

func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// Pure are the files that decide: no clock, goroutine, disk or network, so that the simulator and the model see the same code as
// production, and every run of it can be repeated.
func Pure(f File) bool {
	return !f.Test && (f.Dir == "pkg/volume" || f.Dir == "pkg/mirror/quorum" || f.Path == "pkg/detach/machine.go")
}

// impure are the standard packages through which a clock, a goroutine, the disk or the network would get in.
var impure = under("time", "os", "net", "sync", "context", "io", "math/rand", "crypto/rand", "syscall", "log", "golang.org/x/sys", "golang.org/x/sync")
