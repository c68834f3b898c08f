// Package e2e runs Belay as its manifests install it, on a real Kubernetes with real kubelets, and takes away what it stands on: processes, pods, objects,
// machines and the API server.
//
// It needs the cluster that `make cluster-up` makes, and BELAY_LAB, the program that speaks to it; `make e2e` sets it. Each test says in its comment
// what it is about, and where that was met first.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// system is Belay's own namespace.
const system = "belay-system"

// tag is the image's that is under test.
const tag = "dev"

// patience is how long what must come may take on a machine that has other work too. Nothing is measured by it.
const patience = 4 * time.Minute

var (
	lab      = os.Getenv("BELAY_LAB")
	checkout = func() string { d, _ := filepath.Abs("../.."); return d }()
	program  = filepath.Join(checkout, "bin", "belay")
)

func TestMain(m *testing.M) {
	if lab == "" {
		fmt.Println("no BELAY_LAB: the end-to-end tests need the cluster of `make cluster-up`")
		os.Exit(0)
	}
	if err := install(); err != nil {
		fmt.Fprintln(os.Stderr, "install:", err)
		os.Exit(1)
	}
	code := m.Run()
	writeFigures()
	os.Exit(code)
}

// install applies the manifests and waits until Belay runs.
func install() error {
	if out, err := labTry("image", "belay", tag, program); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if out, err := labTry("kubectl", "apply", "-k", filepath.Join(checkout, "tests/e2e/manifests")); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return rolledOut()
}

// rolledOut waits until every pod of Belay is ready and every node has registered the driver.
func rolledOut() error {
	for _, what := range []string{"deploy/belay-controller", "ds/belay-node", "ds/belay-host"} {
		args := []string{"kubectl", "-n", system, "rollout", "status", "--timeout=" + patience.String(), what}
		if what == "ds/belay-host" { // OnDelete has no rollout
			args = []string{"kubectl", "-n", system, "wait", "--for=condition=Ready", "pod", "-l", "app.kubernetes.io/component=host", "--timeout=" + patience.String()}
		}
		if out, err := labTry(args...); err != nil {
			return fmt.Errorf("%s: %w: %s", what, err, out)
		}
	}
	return nil
}

// labTry runs the lab's program and returns what it printed.
func labTry(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience+time.Minute)
	defer cancel()
	return run(ctx, nil, lab, args...)
}

func run(ctx context.Context, in []byte, name string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, name, args...)
	var out, errOut bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(in), &out, &errOut
	if err := c.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// cluster is a test's view of the cluster: a namespace of its own.
type cluster struct {
	*testing.T
	space string
}

// start makes the test's namespace, which goes with the test.
func start(t *testing.T) *cluster {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(strings.TrimPrefix(t.Name(), "Test")))
	c := &cluster{T: t, space: fmt.Sprintf("%.40s-%d", name, time.Now().Unix()%100000)}
	c.kubectl("create", "namespace", c.space)
	t.Cleanup(func() {
		c.nothingOfOursDeleted()
		if t.Failed() {
			c.tellAll()
		}
		if out, err := labTry("kubectl", "delete", "namespace", c.space, "--timeout="+patience.String()); err != nil {
			t.Errorf("the namespace does not go: %v %s", err, out)
		}
	})
	return c
}

// tellAll logs what is known when a test has failed.
func (c *cluster) tellAll() {
	for _, args := range [][]string{
		{"get", "pods,pvc", "-o", "wide"}, {"get", "events", "--sort-by=.lastTimestamp"}, {"get", "volumeattachments,nodes"},
		{"-n", system, "get", "pods", "-o", "wide"}, {"-n", system, "logs", "deploy/belay-controller", "-c", "belay", "--tail=25"},
		{"-n", system, "logs", "-l", "app.kubernetes.io/component=node", "-c", "belay", "--tail=25"},
	} {
		out, err := labTry(append([]string{"kubectl", "-n", c.space}, args...)...)
		c.Logf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// lab runs a command of the lab, which must succeed.
func (c *cluster) lab(args ...string) string {
	c.Helper()
	out, err := labTry(args...)
	if err != nil {
		c.Fatal(err)
	}
	return out
}

// kubectl runs in the test's namespace, and must succeed.
func (c *cluster) kubectl(args ...string) string {
	c.Helper()
	return c.lab(append([]string{"kubectl", "-n", c.space}, args...)...)
}

// tryKubectl may fail.
func (c *cluster) tryKubectl(args ...string) (string, error) {
	return labTry(append([]string{"kubectl", "-n", c.space}, args...)...)
}

// apply makes the objects of the manifest.
func (c *cluster) apply(manifest string) {
	c.Helper()
	if _, err := run(c.Context(), []byte(manifest), lab, "kubectl", "-n", c.space, "apply", "-f", "-"); err != nil {
		c.Fatal(err)
	}
}

// get reads an object into out, and says whether there is one.
func (c *cluster) get(out any, args ...string) bool {
	c.Helper()
	text, err := c.tryKubectl(append([]string{"get", "--ignore-not-found", "-o", "json"}, args...)...)
	if err != nil {
		c.Fatal(err)
	}
	if strings.TrimSpace(text) == "" {
		return false
	}
	if err := json.Unmarshal([]byte(text), out); err != nil {
		c.Fatalf("%v: %v", args, err)
	}
	return true
}

// eventually fails the test where f goes on to say what is still missing.
func (c *cluster) eventually(what string, f func() error) {
	c.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	c.Fatalf("%s: %v", what, err)
}

// meanwhile fails the test where f says that something is wrong at any time within d.
func (c *cluster) meanwhile(d time.Duration, what string, f func() error) {
	c.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		if err := f(); err != nil {
			c.Fatalf("%s: %v", what, err)
		}
	}
}
