package machine

import (
	"bytes"
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mirror"
)

// mirrored has a server with the real engine, whose programs are "/mirror1" and "/mirror2".
func mirrored(t *testing.T, r *rig) *mirror.Engine {
	log := slog.New(slog.DiscardHandler)
	for _, version := range []string{"1", "2"} {
		r.m.Install("/mirror"+version, func(ctx context.Context, p *Process, e host.EngineProcess) error {
			program := mirror.Program(mirror.Process{Files: p.Files(), Version: version, Log: log})
			open := program.Open
			program.Open = func(ctx context.Context, t host.Take, say func(engine.Progress)) (host.Session, error) {
				s, err := open(ctx, t, say)
				if err == nil {
					p.OnKill(func() { p.Go(func() { _ = s.Close() }) })
				}
				return s, err
			}
			return e.Run(ctx, program, log)
		})
	}
	server := r.m.Start("serve", idle)
	r.must(r.m.disk.MkdirAll(state))
	e, err := mirror.New(mirror.Config{
		FS: server.Files(), Stores: []string{"/a", "/b", "/c"}, State: state, Node: "n", Overcommit: 1, Machine: server.Machine(),
		Host: host.NewClientOn(server.Network(), state), Executable: "/mirror1", Log: log,
	})
	r.must(err)
	r.must(e.Start(t.Context()))
	return e
}

// The product's engine lives on the machine from its creation to its detach: its engine is killed, upgraded and killed again, its host too.
func TestMirrorOnTheMachine(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		e, ctx := mirrored(t, r), t.Context()
		_, err := e.Create(ctx, engine.Spec{ID: id, Name: "v", Size: 16 << 20, Parameters: map[string]string{"replicas": "3", "verify": "off"}})
		r.must(err)
		a, err := e.Publish(ctx, id, "n", engine.PublishOptions{})
		r.must(err)
		d, err := e.Attach(ctx, a)
		r.must(err)
		g, err := r.m.OpenDevice(d.Path)
		r.must(err)
		want := bytes.Repeat([]byte{1}, 4096)
		r.must(g.WriteAt(want, 8192))
		r.engine().Kill()
		r.has(g, want)
		u, err := e.Upgrade(ctx, id, "/mirror2", nil)
		if err != nil || u.From != "1" || u.To != "2" {
			t.Fatalf("%+v: %v", u, err)
		}
		r.has(g, want)
		r.host.Kill()
		r.start()
		r.engine().Kill()
		r.has(g, want)
		time.Sleep(time.Minute) // whatever is to be repaired is
		g.Close()
		r.must(e.Barrier(ctx, a))
		b, err := e.Evidence(ctx, a, nil)
		r.must(err)
		r.must(e.Seal(ctx, b, nil))
		r.must(e.Detach(ctx, a))
		if all := r.engines(); len(all) > 0 {
			t.Errorf("left: %v", all)
		}
		r.must(e.Close(ctx))
	})
}

// has wants the guest to read what it wrote, and to write it again.
func (r *rig) has(g *Guest, want []byte) {
	r.t.Helper()
	got := make([]byte, len(want))
	r.must(g.ReadAt(got, 8192))
	if !bytes.Equal(got, want) {
		r.t.Fatal("something else is read than was written")
	}
	r.must(g.WriteAt(want, 8192))
	r.must(g.Flush())
}
