// Package crash kills the real program at random instants, and looks whether it kept what it promised.
//
// It needs root. BELAY_BIN names the program to test; without it, it is built. BELAY_KILLS is the number of kills under
// load, BELAY_SEED repeats the choices of an earlier run, which printed it.
package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/tests/orchestrator"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// callWithin bounds every wait for an answer: whatever takes longer hangs.
const callWithin = 60 * time.Second

// program is the binary under test.
var program string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if program = os.Getenv("BELAY_BIN"); program != "" || os.Geteuid() != 0 {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "belay-crash-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "belay")
	if err := build("cmd/belay", program); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func build(what, to string) error {
	if out, err := exec.Command("go", "build", "-o", to, "github.com/belay-storage/belay/"+what).CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", what, err, out)
	}
	return nil
}

// rig is a machine that is about to suffer.
type rig struct {
	*testing.T
	*orchestrator.Machine
	random *rand.Rand
	seed   uint64
}

// newRig starts a server on three stores. What is left of it at the end fails the test.
func newRig(t *testing.T) *rig {
	t.Helper()
	r := newMachine(t)
	r.start()
	return r
}

// newMachine is newRig without the start, on the stores given, or on three of its own.
func newMachine(t *testing.T, stores ...string) *rig {
	t.Helper()
	needsRoot(t)
	m, err := orchestrator.New(program, "/var/tmp", 3)
	if err != nil {
		t.Fatal(err)
	}
	if stores != nil {
		m.Stores = stores
	}
	r := &rig{T: t, Machine: m, seed: seed(t)}
	r.random = rand.New(rand.NewPCG(r.seed, 0))
	t.Cleanup(func() {
		if t.Failed() {
			r.explain()
		}
		if err := m.Close(); err != nil {
			t.Errorf("at the end: %v", err)
		}
	})
	return r
}

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts real filesystems")
	}
}

// explain tells what a failure can be looked into with. BELAY_LOGS is a directory that keeps the whole log.
func (r *rig) explain() {
	r.Logf("seed %d; the server's log ends with:\n%s", r.seed, r.LogEnd())
	if dir := os.Getenv("BELAY_LOGS"); dir != "" {
		text, _ := os.ReadFile(filepath.Join(r.Dir, "serve.log"))
		_ = os.WriteFile(filepath.Join(dir, r.Name()+".log"), text, 0o600)
	}
}

func seed(t *testing.T) uint64 {
	t.Helper()
	s := rand.Uint64()
	if text := os.Getenv("BELAY_SEED"); text != "" {
		var err error
		if s, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("BELAY_SEED: %v", err)
		}
	}
	t.Logf("seed %d", s)
	return s
}

// kills is how often to kill: short in the short form.
func kills(t *testing.T, short, full int) int {
	t.Helper()
	if text := os.Getenv("BELAY_KILLS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("BELAY_KILLS=%q: want a number", text)
		}
		return max(1, n*full/fullKills)
	}
	if testing.Short() {
		return short
	}
	return full
}

// fullKills is what BELAY_KILLS counts: the kills under load. The other tests kill in proportion.
const fullKills = 200

func (r *rig) must(what string, err error) {
	r.Helper()
	if err != nil {
		r.Fatalf("%s: %v", what, err)
	}
}

// do makes one call, and wants OK.
func (r *rig) do(what string, call func(context.Context) error) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), callWithin)
	defer cancel()
	err := call(ctx)
	r.hung(ctx)
	r.must(what, err)
}

// hung has processes that do not answer in time say where they wait, in the server's log, and ends them.
func (r *rig) hung(ctx context.Context) {
	if ctx.Err() == nil {
		return
	}
	for _, pid := range r.Processes() {
		_ = syscall.Kill(pid, syscall.SIGQUIT)
	}
	time.Sleep(time.Second) // for them to write
}

// eventually makes the call until it is answered OK, as the orchestrator does, and returns how often it was refused.
func (r *rig) eventually(what string, call func(context.Context) error) int {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), callWithin)
	defer cancel()
	refused := 0
	for {
		err := call(ctx)
		if err == nil {
			return refused
		}
		refused++
		select {
		case <-ctx.Done():
			r.hung(ctx)
			r.Fatalf("%s: not answered OK within %v: %v", what, callWithin, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (r *rig) start() {
	r.Helper()
	r.must("start of the server", r.Start(r.Context()))
}

func (r *rig) kill() {
	r.Helper()
	r.must("kill", r.Kill())
}

func (r *rig) create(s orchestrator.Spec) (v *orchestrator.Volume) {
	r.Helper()
	r.do("create "+s.Name, func(ctx context.Context) (err error) { v, err = r.Create(ctx, s); return err })
	return v
}

// receipts are those of the volume; the program has checked signatures and chain.
func (r *rig) receipts(v *orchestrator.Volume) []receipt.Receipt {
	r.Helper()
	var all admin.Receipts
	r.do("receipts of "+v.ID, func(ctx context.Context) error { return r.AskJSON(ctx, &all, "receipts", v.ID) })
	if len(all.Breaks) > 0 {
		r.Fatalf("receipts of %s: %v", v.ID, all.Breaks)
	}
	out := make([]receipt.Receipt, len(all.Entries))
	for i, e := range all.Entries {
		out[i] = e.Receipt
	}
	return out
}

// newest wants a receipt in force that covers every writer so far, of one of the kinds.
func (r *rig) newest(v *orchestrator.Volume, kinds ...receipt.Kind) receipt.Receipt {
	r.Helper()
	all := r.receipts(v)
	if len(all) == 0 {
		r.Fatalf("volume %s has no receipt", v.ID)
	}
	last := all[len(all)-1]
	if state := r.volume(v); !state.Sealed || last.Writer < state.Writer || state.Receipt == nil {
		r.Fatalf("volume %s: the newest receipt is of writer %d, the newest writer is %d (sealed: %v)", v.ID, last.Writer, state.Writer, state.Sealed)
	}
	for _, k := range kinds {
		if last.Kind == k {
			return last
		}
	}
	r.Fatalf("volume %s: the receipt is %s (%s), want %v", v.ID, last.Kind, last.Reason, kinds)
	return last
}

// volume is what the program says of the volume.
func (r *rig) volume(v *orchestrator.Volume) admin.Volume {
	r.Helper()
	var all []admin.Volume
	r.do("belay volumes", func(ctx context.Context) error { return r.AskJSON(ctx, &all, "volumes") })
	for _, one := range all {
		if string(one.ID) == v.ID {
			return one
		}
	}
	r.Fatalf("volume %s is not listed", v.ID)
	return admin.Volume{}
}

// verify has everything read again, and wants no difference to the receipt, nor between the replicas.
func (r *rig) verify(v *orchestrator.Volume) {
	r.Helper()
	var found admin.Verification
	r.do("verify "+v.ID, func(ctx context.Context) error { return r.AskJSON(ctx, &found, "verify", v.ID) })
	var err error
	if grown := found.Comparison == admin.Grown; !found.Clean() || found.Comparison != admin.Equal && !grown || len(found.Evidence) != len(r.Stores) {
		err = fmt.Errorf("comparison %q, findings %v, repairs %v, unresolved %v", found.Comparison, found.Findings, found.Repairs, found.Unresolved)
	}
	for _, e := range found.Evidence {
		if e.State != engine.InSync || !e.Digest.Equal(found.Expected) {
			err = errors.Join(err, fmt.Errorf("replica %s at %s is %s (%s%s), digest %v, sealed was %v", e.ID, e.Place, e.State, e.Reason, e.Error, e.Digest.Sum, found.Expected.Sum))
		}
	}
	r.must("verify "+v.ID, err)
}

// settled wants nothing dangling.
func (r *rig) settled() {
	r.Helper()
	r.must("after everything was detached", r.Settled(r.Context()))
}
