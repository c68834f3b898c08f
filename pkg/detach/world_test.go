package detach

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/engine/enginetest"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

const (
	vol      volume.ID     = "pvc-1"
	nodeA    volume.NodeID = "node-a"
	nodeB    volume.NodeID = "node-b"
	staging                = "/staging/pvc-1"
	podA                   = "/pods/a/mount"
	stateDir               = "/state"
	size                   = 16 * volume.MiB
	bootA                  = "boot-a"
)

// world is one cluster in memory: an engine, a node with a disk and a kernel, and the programs under test. All but the
// programs survive their death.
type world struct {
	t      *testing.T
	mem    *enginetest.Memory
	disk   *vfs.Mem
	kernel *kernel
	book   *receipt.Book
	faults func() // called by the engine before each block it verifies

	boot  string
	agent *Agent
	gate  *Gate
	said  *events

	silent    error // why the node does not answer the gate
	lost      string
	presumed  string
	overrides map[volume.Attachment]Override
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, disk: vfs.NewMem(), boot: bootA, said: &events{}, overrides: map[volume.Attachment]Override{}}
	w.mem = enginetest.NewMemory(enginetest.MemoryOptions{Verifying: func(volume.ID, engine.Progress) error {
		if w.faults != nil {
			w.faults()
		}
		return nil
	}})
	w.kernel = &kernel{mem: w.mem, mounts: map[string]bool{}, cache: map[int64][]byte{}}
	keys, err := receipt.OpenKeyring(vfs.NewMem(), "/keys")
	w.must(err)
	w.book = receipt.NewBook(keys, time.Now)
	w.must(w.disk.MkdirAll(stateDir))
	w.must(w.disk.SyncDir("/"))
	w.start(w.mem, w.mem.On(nodeA), w.kernel, w.disk)
	t.Cleanup(func() { w.agent.Close(); w.gate.Close() })
	return w
}

// start makes the programs anew over the given halves.
func (w *world) start(control engine.Control, node engine.Node, r Releaser, disk vfs.FS) {
	w.t.Helper()
	w.must(w.tryStart(control, node, r, disk))
}

func (w *world) tryStart(control engine.Control, node engine.Node, r Releaser, disk vfs.FS) error {
	journal, err := OpenJournal(disk, stateDir+"/journal")
	if err != nil {
		return err
	}
	w.agent, err = NewAgent(AgentConfig{
		Node: nodeA, Engine: node, Control: control, Journal: journal, Releaser: r, Book: w.book,
		Boot: w.boot, Events: w.said.callbacks(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	w.gate, err = NewGate(GateConfig{
		Control: control, Book: w.book, Events: w.said.callbacks(),
		Agents:   func(volume.NodeID) (AgentClient, error) { return w.agent, w.silent },
		Lost:     func(context.Context, volume.NodeID) (string, bool) { return w.lost, w.lost != "" },
		Presumed: func(context.Context, volume.NodeID) (string, bool) { return w.presumed, w.presumed != "" },
		Overrides: func(_ context.Context, a volume.Attachment) (Override, bool) {
			o, found := w.overrides[a]
			return o, found
		},
	})
	return err
}

// restart kills the programs and starts new ones on the same kernel, disk and engine.
func (w *world) restart() {
	w.t.Helper()
	w.agent.Close()
	w.gate.Close()
	w.disk = w.disk.Restart()
	w.start(w.mem, w.mem.On(nodeA), w.kernel, w.disk)
}

// reboot ends the machine: mounts, devices and page cache are gone.
func (w *world) reboot() {
	w.t.Helper()
	w.agent.Close()
	w.gate.Close()
	w.disk = w.disk.CrashClone(nil)
	w.boot += "'"
	w.mem.Forget(vol)
	w.kernel = &kernel{mem: w.mem, mounts: map[string]bool{}, cache: map[int64][]byte{}}
	w.start(w.mem, w.mem.On(nodeA), w.kernel, w.disk)
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) ctx() context.Context { return w.t.Context() }

// refused wants an error of the class that says each of the words.
func (w *world) refused(err, class error, words ...string) {
	w.t.Helper()
	if !errors.Is(err, class) {
		w.t.Fatalf("got %v, want %v", err, class)
	}
	for _, word := range words {
		if !bytes.Contains([]byte(err.Error()), []byte(word)) {
			w.t.Errorf("%q does not say %q", err, word)
		}
	}
}

func (w *world) create() {
	w.t.Helper()
	_, err := w.mem.Create(w.ctx(), engine.Spec{ID: vol, Name: "the claim", Size: size})
	w.must(err)
}

func (w *world) publish() volume.Attachment {
	w.t.Helper()
	a, err := w.mem.Publish(w.ctx(), vol, nodeA, engine.PublishOptions{})
	w.must(err)
	return a
}

func entry(a volume.Attachment) Entry {
	return Entry{Attachment: a, Staging: staging, Access: Mount, FSType: "ext4"}
}

// stage does what the driver does at NodeStage.
func (w *world) stage(a volume.Attachment) engine.Device {
	w.t.Helper()
	w.must(w.agent.BeginStage(w.ctx(), entry(a)))
	d, err := w.mem.On(nodeA).Attach(w.ctx(), a)
	w.must(err)
	w.kernel.mount(staging, d)
	w.must(w.agent.FinishStage(w.ctx(), vol, d.Path))
	return d
}

func (w *world) show(target string) {
	w.t.Helper()
	w.must(w.agent.AddTarget(w.ctx(), vol, Target{Path: target}))
	w.kernel.bind(target)
}

func (w *world) hide(target string) {
	w.t.Helper()
	w.kernel.unbind(target)
	w.must(w.agent.RemoveTarget(w.ctx(), vol, target))
}

// use brings a volume all the way to a pod that has written, and ended: data is in the page cache still.
func (w *world) use() (volume.Attachment, engine.Device) {
	w.t.Helper()
	w.create()
	a := w.publish()
	d := w.stage(a)
	w.show(podA)
	w.kernel.write(0, 1)
	w.hide(podA)
	return a, d
}

func (w *world) volume() engine.Volume {
	w.t.Helper()
	v, err := w.mem.Get(w.ctx(), vol)
	w.must(err)
	return v
}

// covered says whether a verified receipt in force covers every writer so far: what every OK must rest on.
func (w *world) covered() (receipt.Receipt, bool) {
	w.t.Helper()
	v := w.volume()
	raws, err := w.mem.Receipts(w.ctx(), vol)
	w.must(err)
	if !v.Sealed || len(raws) == 0 {
		return receipt.Receipt{}, false
	}
	if breaks := w.book.VerifyChain(raws); len(breaks) > 0 {
		w.t.Fatalf("chain of receipts: %+v", breaks)
	}
	r, err := w.book.Verify(raws[len(raws)-1])
	w.must(err)
	return r, r.Writer >= v.Writer && bytes.Equal(v.Head, receipt.Hash(raws[len(raws)-1]))
}

// detached wants nothing of the volume left anywhere, and a receipt of the kind.
func (w *world) detached(kind receipt.Kind) receipt.Receipt {
	w.t.Helper()
	r, covered := w.covered()
	if !covered || r.Kind != kind {
		w.t.Fatalf("receipt %+v covers=%t, want kind %s", r, covered, kind)
	}
	if v := w.volume(); v.Attachment != nil {
		w.t.Fatalf("still attached: %v", *v.Attachment)
	}
	return r
}

// clear wants nothing of the volume left on the node.
func (w *world) clear() {
	w.t.Helper()
	if e, found, err := w.agent.Entry(vol); found || err != nil {
		w.t.Fatalf("journal has %+v, %v", e, err)
	}
	if d, err := w.mem.On(nodeA).Attached(w.ctx(), vol); !errors.Is(err, engine.ErrNotFound) {
		w.t.Fatalf("device %+v, %v", d, err)
	}
	if w.kernel.mounts[staging] {
		w.t.Fatal("still mounted")
	}
}

// reads wants the block to hold what was written with seed, on the next attach.
func (w *world) reads(index int64, seed byte) {
	w.t.Helper()
	d, err := w.mem.On(nodeA).Attach(w.ctx(), w.publish())
	w.must(err)
	got := make([]byte, 4096)
	w.must(w.mem.Read(vol, d.Writer, index*4096, got))
	if !bytes.Equal(got, content(seed)) {
		w.t.Fatalf("block %d is not what was written with seed %d", index, seed)
	}
}

func content(seed byte) []byte {
	sum := sha256.Sum256([]byte{seed})
	return bytes.Repeat(sum[:], 4096/len(sum))
}

// kernel is a small true one: a page cache in front of the device, mounts, and users of them.
type kernel struct {
	mem *enginetest.Memory

	mu       sync.Mutex
	device   engine.Device
	mounts   map[string]bool
	cache    map[int64][]byte
	inUse    string // who has a file open on the staging mount
	badWrite bool   // the next write-back fails, and the kernel forgets the pages
	synced   int
}

func (k *kernel) mount(path string, d engine.Device) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.device, k.mounts[path] = d, true
}

func (k *kernel) bind(target string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mounts[target] = true
}

func (k *kernel) unbind(target string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.mounts, target)
}

func (k *kernel) write(index int64, seed byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cache[index] = content(seed)
}

// Release implements Releaser.
func (k *kernel) Release(_ context.Context, e Entry, d DeviceState) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range e.Targets {
		if k.mounts[t.Path] {
			return fmt.Errorf("%w: mounted at %s", ErrHeld, t.Path)
		}
	}
	if k.inUse != "" {
		return fmt.Errorf("%w by %s", ErrHeld, k.inUse)
	}
	if d == DeviceAlive && k.mounts[e.Staging] {
		if err := k.sync(e.Attachment.Volume); err != nil {
			return err
		}
	}
	clear(k.cache)
	delete(k.mounts, e.Staging)
	return nil
}

func (k *kernel) sync(id volume.ID) error {
	k.synced++
	if k.badWrite {
		k.badWrite = false
		clear(k.cache)
		return fmt.Errorf("syncfs: input/output error: %w", ErrWriteback)
	}
	for index, p := range k.cache {
		if err := k.mem.Write(id, k.device.Writer, index*4096, p); err != nil {
			return err
		}
		delete(k.cache, index)
	}
	return nil
}

// Holders implements Releaser.
func (k *kernel) Holders(context.Context, Entry) (out []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for m := range k.mounts {
		out = append(out, "mounted at "+m)
	}
	if k.inUse != "" {
		out = append(out, k.inUse)
	}
	slices.Sort(out)
	return out
}

// events remembers what was reported.
type events struct {
	mu   sync.Mutex
	seen []string
}

func (e *events) add(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seen = append(e.seen, fmt.Sprintf(format, args...))
}

func (e *events) has(what string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Contains(e.seen, what)
}

func (e *events) callbacks() Events {
	return Events{
		DetachRefused:   func(volume.ID, volume.NodeID, error) { e.add("refused") },
		BarrierStarted:  func(volume.Attachment) { e.add("started") },
		BarrierProgress: func(volume.Attachment, engine.Progress) { e.add("progress") },
		ReceiptWritten:  func(_ volume.Attachment, r receipt.Receipt) { e.add("receipt %s", r.Kind) },
		Fenced:          func(volume.Attachment, engine.FenceProof, string) { e.add("fenced") },
		Quarantined:     func(volume.Attachment, string) { e.add("quarantined") },
	}
}
