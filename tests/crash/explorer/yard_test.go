package explorer

import (
	"context"
	"errors"
	"fmt"

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
