package explorer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mirror"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// idleMachine is a machine whose host has no device: volumes are written by sessions of this process.
type idleMachine struct {
	host.Machine // what nobody asks of it
	files        *vfs.Mem
	served       chan *wire.Server
	server       *wire.Server
}

func (m *idleMachine) Boot() (string, error)                         { return "00000000-0000-0000-0000-000000000009", nil }
func (m *idleMachine) Self() host.Identity                           { return host.Identity{PID: 99, Start: "1"} }
func (m *idleMachine) Files() vfs.FS                                 { return m.files }
func (m *idleMachine) Network() wire.Network                         { return m }
func (m *idleMachine) Resend() (bool, error)                         { return true, nil }
func (m *idleMachine) Leftovers(string) ([]string, error)            { return nil, nil }
func (m *idleMachine) Listen(string) (wire.Socket, error)            { return m, nil }
func (m *idleMachine) Remove(string) error                           { return nil }
func (m *idleMachine) Close() error                                  { return nil }
func (m *idleMachine) RemoveLeftovers(context.Context, string) error { return nil }

func (m *idleMachine) Serve(ctx context.Context, s *wire.Server) error {
	m.served <- s
	<-ctx.Done()
	return nil
}

func (m *idleMachine) Client(path string, codes map[string]error) *wire.Client {
	return wire.NewClientOver(func(ctx context.Context, method string, request []byte, more func([]byte) bool) error {
		m.server.Answer(ctx, method, request, func(line []byte) { more(line) })
		return ctx.Err()
	}, path, codes)
}

// runIdle runs the machine's host until stop.
func runIdle() (m *idleMachine, stop func(), err error) {
	m = &idleMachine{files: vfs.NewMem(), served: make(chan *wire.Server)}
	h, err := host.New(host.Config{State: "/state", Version: "test", Machine: m, Log: quiet})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = h.Serve(ctx)
	}()
	m.server = <-m.served
	return m, func() { cancel(); <-done }, nil
}

// yard is an engine on stores, as `belay serve` has it, and its volume.
type yard struct {
	engine *mirror.Engine
	fs     vfs.FS
	names  []string // of the disks with a store
	copies int      // that volumes have
	stop   func()
}

const (
	stateDisk = "state"
	theNode   = volume.NodeID("n1")
	yardSize  = 16 * volume.MiB
)

func yardDisks(stores int) []string { return append(storeNames(stores), stateDisk) }

// openYard starts an engine on the disks, of which the last is that of its state.
func openYard(fsys vfs.FS, disks []string, copies int) (*yard, error) {
	m, stop, err := runIdle()
	if err != nil {
		return nil, err
	}
	y := &yard{fs: fsys, names: disks[:len(disks)-1], copies: copies, stop: stop}
	c := mirror.Config{
		FS: fsys, State: "/" + stateDisk + "/belay", Node: theNode, Overcommit: 1000, Machine: m, Host: host.NewClientOn(m, "/state"), Log: quiet,
	}
	for _, name := range y.names {
		c.Stores = append(c.Stores, y.path(name))
	}
	y.engine, err = mirror.New(c)
	if err == nil {
		err = y.engine.Start(context.Background())
	}
	if err != nil {
		stop()
		return nil, fmt.Errorf("start: %w", err)
	}
	return y, nil
}

func (y *yard) path(name string) string { return "/" + name + "/store" }

func (y *yard) close() {
	_ = y.engine.Close(context.Background())
	y.stop()
}

// session is the writer of the attachment.
func (y *yard) session(a volume.Attachment) (*mirror.Session, error) {
	text, err := vfs.ReadFile(y.fs, "/"+stateDisk+"/belay/installation", 4096)
	if err != nil {
		return nil, err
	}
	var id quorum.UUID
	if err := id.UnmarshalText(text[:len(text)-1]); err != nil {
		return nil, err
	}
	find := func(wanted quorum.UUID) (*store.Dir, error) {
		for _, d := range y.stores(id) {
			if d.ID() == wanted {
				return d, nil
			}
		}
		return nil, errors.New("it is away")
	}
	return mirror.Open(context.Background(), mirror.OpenConfig{
		ID: theVolume, Stores: y.stores(id), Find: find, Purpose: mirror.ForDevice, Attachment: a.Epoch, Holder: "explorer", Boot: quorum.UUID{9}, Log: quiet,
	})
}

func theSpec(copies int) engine.Spec {
	return engine.Spec{ID: theVolume, Name: "vol", Size: yardSize, Parameters: map[string]string{"replicas": fmt.Sprint(copies), "verify": "off"}}
}

func (y *yard) create() error {
	v, err := y.engine.Create(context.Background(), theSpec(y.copies))
	if err == nil && v.State != engine.Healthy {
		err = fmt.Errorf("a new volume is %s: %s", v.State, v.Reason)
	}
	return err
}

func (y *yard) get() (engine.Volume, error) { return y.engine.Get(context.Background(), theVolume) }

func (y *yard) publish() (volume.Attachment, error) {
	return y.engine.Publish(context.Background(), theVolume, theNode, engine.PublishOptions{})
}

// stores are those that are there.
func (y *yard) stores(installation quorum.UUID) (dirs []*store.Dir) {
	for _, name := range y.names {
		if d, err := store.OpenDir(y.fs, y.path(name), installation); err == nil {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// fenced begins the receipts of writers that were gone. Each receipt is another.
const fenced = "fenced "

// wayOut is what the gate does for a writer that is gone: fence, evidence, seal, unpublish.
func (y *yard) wayOut(a volume.Attachment) error {
	ctx := context.Background()
	if _, err := y.engine.Fence(ctx, a, engine.FenceOptions{Reason: "test", Kill: true}); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	err := proven(func() (engine.Barrier, error) { return y.engine.Evidence(ctx, a, nil) },
		func(b engine.Barrier) error { return y.engine.Seal(ctx, b, []byte(fenced+b.View)) })
	if err != nil {
		return err
	}
	return y.unpublish(a)
}

// proven takes evidence and seals with it, and takes it anew where a replica has dropped out between the two, as the gate does.
func proven(evidence func() (engine.Barrier, error), seal func(b engine.Barrier) error) error {
	for again := 0; ; again++ {
		b, err := evidence()
		if err != nil {
			return fmt.Errorf("evidence: %w", err)
		}
		if len(b.Unresolved) > 0 {
			return fmt.Errorf("unresolved: %+v", b.Unresolved)
		}
		err = seal(b)
		if err == nil {
			return nil
		}
		if again == 2 || !errors.Is(err, engine.ErrStaleEpoch) {
			return fmt.Errorf("seal: %w", err)
		}
	}
}

func (y *yard) unpublish(a volume.Attachment) error {
	if err := y.engine.Unpublish(context.Background(), a); err != nil {
		return fmt.Errorf("unpublish: %w", err)
	}
	return nil
}

// leave detaches a session in order.
func leave(w *mirror.Session, receipt string) error {
	if err := w.Stop(); err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	return proven(func() (engine.Barrier, error) { return w.Evidence(context.Background(), nil) },
		func(b engine.Barrier) error { return w.Seal(b, []byte(receipt)) })
}

func (y *yard) receipts() (out []string, err error) {
	raw, err := y.engine.Receipts(context.Background(), theVolume)
	for _, r := range raw {
		out = append(out, string(r))
	}
	return out, err
}

// lifeOf is how far a volume of an engine has come, and what it holds.
type lifeOf struct {
	copies   int
	phase    phase
	open     *volume.Attachment // promised; nil: none
	opening  bool               // being asked for, or being closed
	size     volume.Bytes
	growing  volume.Bytes
	receipts []string
	sealing  string
	blocks   truth // only its blocks
}

type phase int

const (
	absent phase = iota
	coming
	there
	going
	deleted
)

func (l *lifeOf) clone() *lifeOf {
	now := *l
	now.blocks = *l.blocks.clone()
	now.receipts = append([]string(nil), l.receipts...)
	if l.open != nil {
		a := *l.open
		now.open = &a
	}
	return &now
}

// check starts an engine on what is left, which must know of the volume what was promised, and takes the volume to its end: whatever was cut
// short is asked for again.
func (l *lifeOf) check(_ *testing.T, s state, remake func() *disks) (verdict, error) {
	left := remake()
	y, err := openYard(left, left.names, l.copies)
	if err == nil && s.kind() == killed { // what it has found must survive the power
		y.close()
		left = left.cut()
		y, err = openYard(left, left.names, l.copies)
	}
	if err != nil {
		return opened, err
	}
	defer func() { y.close() }()
	v, err := y.get()
	switch {
	case errors.Is(err, engine.ErrNotFound) && l.phase == there, err == nil && (l.phase == absent || l.phase == deleted):
		return opened, fmt.Errorf("phase %d: %+v, %w", l.phase, v, err)
	case errors.Is(err, engine.ErrNotFound):
		return unknown, l.anew(y)
	case errors.Is(err, engine.ErrUnavailable) && l.phase == coming:
		return unknown, l.anew(y)
	case err != nil:
		return opened, err
	}
	if l.phase == coming {
		if err := y.create(); err != nil {
			return opened, fmt.Errorf("create again: %w", err)
		}
		return opened, l.toTheEnd(y)
	}
	if err := l.described(v); err != nil {
		return opened, err
	}
	if l.phase == going && s.draw(2) == 0 {
		return opened, l.delete(y)
	}
	return opened, l.toTheEnd(y)
}

// described compares the description with what was promised.
func (l *lifeOf) described(v engine.Volume) error {
	switch {
	case v.Size != l.size && v.Size != l.growing:
		return fmt.Errorf("size %d; promised is %d, asked for %d", v.Size, l.size, l.growing)
	case l.opening:
		return nil
	case (v.Attachment == nil) != (l.open == nil) || l.open != nil && *v.Attachment != *l.open:
		return fmt.Errorf("attachment %v, promised is %v", v.Attachment, l.open)
	}
	return nil
}

// anew makes the volume where there is none: it is blank.
func (l *lifeOf) anew(y *yard) error {
	if err := y.create(); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	blank := &lifeOf{copies: l.copies, phase: there, size: yardSize, blocks: truth{blocks: map[int64]*content{}}}
	for i := range l.blocks.blocks {
		blank.blocks.block(i)
	}
	return blank.toTheEnd(y)
}

// toTheEnd finishes an open attachment, reads what is there in the next one, detaches that and deletes the volume.
func (l *lifeOf) toTheEnd(y *yard) error {
	v, err := y.get()
	if err == nil && v.Attachment != nil {
		if v.Sealed {
			err = y.unpublish(*v.Attachment)
		} else {
			err = y.wayOut(*v.Attachment)
		}
	}
	if err != nil {
		return fmt.Errorf("the open attachment: %w", err)
	}
	if err := l.wantReceipts(y); err != nil {
		return err
	}
	a, err := y.publish()
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	w, err := y.session(a)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer w.Close()
	got, err := l.blocks.read(w)
	if err == nil {
		err = l.blocks.allows(got, false)
	}
	if err == nil {
		err = leave(w, "last")
	}
	w.Close()
	if err == nil {
		err = y.unpublish(a)
	}
	if err != nil {
		return err
	}
	return l.delete(y)
}

// wantReceipts wants those that are in force, then the one that was asked for or the fence's.
func (l *lifeOf) wantReceipts(y *yard) error {
	got, err := y.receipts()
	if err != nil {
		return err
	}
	if len(got) < len(l.receipts) || len(got) > len(l.receipts)+2 {
		return fmt.Errorf("receipts %q, in force are %q", got, l.receipts)
	}
	for i, r := range got {
		if i < len(l.receipts) && r != l.receipts[i] || i >= len(l.receipts) && !strings.HasPrefix(r, fenced) && (l.sealing == "" || r != l.sealing) {
			return fmt.Errorf("receipts %q, in force are %q, asked for is %q", got, l.receipts, l.sealing)
		}
	}
	return nil
}

// delete deletes the volume, twice, and starts the engine again: it stays away.
func (l *lifeOf) delete(y *yard) error {
	for range 2 {
		v, err := y.get()
		if err == nil && v.Attachment != nil {
			return nil // being published when it was deleted: not by this scenario
		}
		if err := y.engine.Delete(context.Background(), theVolume); err != nil {
			return fmt.Errorf("delete: %w", err)
		}
	}
	names := append(append([]string(nil), y.names...), stateDisk)
	y.close()
	again, err := openYard(y.fs, names, y.copies)
	if err != nil {
		return err
	}
	*y = *again
	if v, err := y.get(); !errors.Is(err, engine.ErrNotFound) {
		return fmt.Errorf("after Delete: %+v, %w", v, err)
	}
	all, err := y.engine.List(context.Background())
	if err == nil && len(all) > 0 {
		err = fmt.Errorf("after Delete: %+v", all)
	}
	return err
}

// volumeLife is a volume from its creation to its deletion, with one writer that dies and one that leaves, and another of its name.
func volumeLife(copies, stores int) scenario {
	return scenario{name: fmt.Sprintf("volume/%d-of-%d", copies, stores), weight: share / 2, play: func(t *testing.T, seed uint64) []point {
		l := &lifeOf{copies: copies, size: yardSize, blocks: truth{blocks: map[int64]*content{}}}
		r := newRecorder(newDisks(yardDisks(stores)...), seed)
		r.expect = func() expectation { return l.clone() }
		p := r.start()
		y, err := openYard(p.fs, yardDisks(stores), copies)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.live(y); err != nil {
			t.Error(err)
		}
		r.end()
		r.expect = nil
		p.dead.Store(true)
		y.close()
		return r.points
	}}
}

// live plays the life.
func (l *lifeOf) live(y *yard) error {
	steps := []func() error{
		func() error { return l.born(y) },
		func() error {
			return l.use(y, func(w *mirror.Session, a volume.Attachment) error { w.Close(); return l.fenced(y, a) })
		},
		func() error { return l.grow(y) },
		func() error {
			return l.use(y, func(w *mirror.Session, a volume.Attachment) error { return l.left(y, w, a) })
		},
		func() error { return l.end(y) },
		func() error { return l.born(y) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (l *lifeOf) born(y *yard) error {
	l.phase, l.receipts, l.size = coming, nil, yardSize
	if err := y.create(); err != nil {
		return err
	}
	l.phase = there
	return nil
}

// use publishes and attaches the volume, writes, flushes, writes again, and ends with over.
func (l *lifeOf) use(y *yard, over func(w *mirror.Session, a volume.Attachment) error) error {
	l.opening = true
	a, err := y.publish()
	if err != nil {
		return err
	}
	l.open, l.opening = &a, false
	w, err := y.session(a)
	if err != nil {
		return err
	}
	h := &l.blocks
	for i, value := range []uint64{1, 2} {
		value += 10 * uint64(a.Epoch)
		from, to := int64(i*4), int64(i*4+8)
		h.begin(from, to, value)
		p := vfs.AlignedBuffer(int(to-from) * sectorSize)
		for i := range p {
			p[i] = byte(value >> (8 * (i % 8)))
		}
		if err := w.WriteAt(p, from*sectorSize); err != nil {
			return err
		}
		h.answer(from, to, value)
		if i == 0 {
			if err := w.Flush(); err != nil {
				return err
			}
			h.flushed()
		}
	}
	return over(w, a)
}

// fenced has the gate take the place of the dead writer.
func (l *lifeOf) fenced(y *yard, a volume.Attachment) error {
	l.opening = true
	if err := y.wayOut(a); err != nil {
		return err
	}
	l.open, l.opening = nil, false
	var err error
	l.receipts, err = y.receipts()
	return err
}

func (l *lifeOf) left(y *yard, w *mirror.Session, a volume.Attachment) error {
	l.sealing = "left"
	err := leave(w, "left")
	w.Close()
	if err != nil {
		return err
	}
	l.blocks.flushed()
	l.receipts, l.sealing = append(l.receipts, "left"), ""
	l.opening = true
	if err := y.unpublish(a); err != nil {
		return err
	}
	l.open, l.opening = nil, false
	return nil
}

func (l *lifeOf) grow(y *yard) error {
	l.growing = 2 * yardSize
	if _, err := y.engine.Expand(context.Background(), theVolume, l.growing); err != nil {
		return err
	}
	l.size, l.growing = l.growing, 0
	return nil
}

func (l *lifeOf) end(y *yard) error {
	l.phase = going
	if err := y.engine.Delete(context.Background(), theVolume); err != nil {
		return err
	}
	l.phase = deleted
	l.blocks = truth{blocks: map[int64]*content{}}
	return nil
}
