package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// processorsMax is how many threads of an engine process run Go code at the same time. Requests wait for disks, and
// threads that look for work are woken for nothing: with 64 a request took a fifth more CPU time than with 4.
const processorsMax = 4

// RunEngine is an engine process: the verb "engine" of the executable. It reads its order from in, says on out when it serves,
// serves the device on descriptor 3, and ends when in does: it never outlives its parent, which holds the device open.
func RunEngine(ctx context.Context, in io.Reader, out io.Writer, log *slog.Logger) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE) // it ends with its parent, not with a terminal
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), processorsMax))
	orders := json.NewDecoder(in)
	say := speaker(out)
	var o order
	if err := orders.Decode(&o); err != nil {
		return fmt.Errorf("engine process: order: %w", err)
	}
	orphaned := make(chan struct{})
	go func() {
		io.Copy(io.Discard, in) //nolint:errcheck // its end is what matters, not its cause
		close(orphaned)
	}()
	count := newCounter()
	s, err := openOrdered(ctx, o, say, count, log)
	if err != nil {
		say(word{Code: codeOf(err), Error: err.Error()})
		return err
	}
	return serve(ctx, s, o, say, count, orphaned, log)
}

func speaker(out io.Writer) func(word) {
	var mu sync.Mutex
	lines := json.NewEncoder(out)
	return func(w word) {
		mu.Lock()
		defer mu.Unlock()
		lines.Encode(w) //nolint:errcheck // a parent that does not listen is dead
	}
}

func codeOf(err error) string {
	for code, class := range engine.Codes {
		if errors.Is(err, class) {
			return code
		}
	}
	return ""
}

func openOrdered(ctx context.Context, o order, say func(word), count *counter, log *slog.Logger) (*Session, error) {
	fsys := vfs.OS()
	var installation, boot quorum.UUID
	if err := errors.Join(installation.UnmarshalText([]byte(o.Installation)), boot.UnmarshalText([]byte(o.Boot))); err != nil {
		return nil, err
	}
	find := func(id quorum.UUID) (*store.Dir, error) { return findHome(fsys, o.Stores, id, installation) }
	var dirs []*store.Dir
	for _, h := range o.Stores {
		d, err := h.open(fsys, installation)
		if err != nil {
			log.Warn("store cannot be opened", "store", h.Path, "cause", err)
			continue
		}
		dirs = append(dirs, d)
	}
	return Open(ctx, OpenConfig{
		ID: o.Volume, Stores: dirs, Find: find, Purpose: ForDevice, Attachment: o.Attachment.Epoch, Boot: boot, Log: log, Events: count.events(),
		Holder:   holderText("engine", string(o.Node), o.Volume, os.Getpid()),
		Progress: func(p engine.Progress) { say(word{Progress: &p}) },
	})
}

// serve answers the device and the parent until the parent or the device is gone, and then closes the session.
func serve(ctx context.Context, s *Session, o order, say func(word), count *counter, orphaned <-chan struct{}, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := wire.Listen(o.Socket)
	if err != nil {
		say(word{Error: err.Error()})
		s.Close()
		return err
	}
	defer l.Close()
	blockSize := s.super.LogicalBlockSize
	var servers sync.WaitGroup
	ends := make(chan error, 2)
	servers.Go(func() { ends <- methods(s, count, log).Serve(ctx, l) })
	channel := os.NewFile(channelFD, "device")
	servers.Go(func() {
		ends <- device.Serve(ctx, channel, s, device.ServeOptions{Name: string(o.Volume), BlockSize: blockSize, Log: log})
	})
	say(word{Ready: &ready{Writer: s.epoch, Unclean: s.unclean, Blank: s.Blank(), BlockSize: blockSize}})
	select {
	case <-orphaned:
	case err = <-ends:
	}
	cancel()
	return errors.Join(err, leave(s, &servers))
}

// leaveWithin bounds how long an engine process takes to end. Requests that wait for replicas wait for ever, and where the
// parent is dead nobody else can end the process: what uses the device would wait with it.
const leaveWithin = 10 * time.Second

// leave flushes and closes the session once nobody uses it any more: a request that found a replica closed would take it
// for failed, and exclude it.
func leave(s *Session, servers *sync.WaitGroup) error {
	left := make(chan error, 1)
	go func() {
		servers.Wait()
		var err error
		if !s.Sealed() {
			err = s.Flush()
		}
		s.Close()
		left <- err
	}()
	select {
	case err := <-left:
		return err
	case <-time.After(leaveWithin):
		return fmt.Errorf("volume %s: requests are still waiting after %v: the process ends without them", s.id, leaveWithin)
	}
}

// methods are what the parent can ask.
func methods(s *Session, count *counter, log *slog.Logger) *wire.Server {
	server := wire.NewServer(engine.Codes, log)
	wire.Handle(server, "status", func(context.Context, nothing, func(engine.Progress)) (status, error) { return s.status(), nil })
	wire.Handle(server, "tally", func(ctx context.Context, _ nothing, report func(tally)) (nothing, error) {
		count.follow(ctx, report)
		return nothing{}, nil
	})
	wire.Handle(server, "stop", func(context.Context, nothing, func(engine.Progress)) (nothing, error) { return nothing{}, s.Stop() })
	wire.Handle(server, "evidence", func(ctx context.Context, _ nothing, report func(engine.Progress)) (engine.Barrier, error) {
		return s.Evidence(ctx, report)
	})
	wire.Handle(server, "seal", func(_ context.Context, q sealing, _ func(engine.Progress)) (nothing, error) {
		return nothing{}, s.Seal(q.Barrier, q.Receipt)
	})
	wire.Handle(server, "expand", func(_ context.Context, size volume.Bytes, _ func(engine.Progress)) (nothing, error) {
		return nothing{}, s.Update(growTo(size))
	})
	wire.Handle(server, "format", func(_ context.Context, f engine.Format, _ func(engine.Progress)) (nothing, error) {
		return nothing{}, s.Update(formatTo(f))
	})
	wire.Handle(server, "quarantine", func(_ context.Context, f []engine.Finding, _ func(engine.Progress)) (nothing, error) {
		return nothing{}, s.Update(quarantine(f))
	})
	wire.Handle(server, "verify", func(ctx context.Context, _ nothing, report func(engine.Progress)) (engine.Verification, error) {
		return s.ScrubNow(ctx, report)
	})
	return server
}

func (s *Session) status() status {
	v := s.view.Load()
	out := status{Writer: s.epoch, Size: v.config.Size, Blank: s.Blank(), Stalled: s.Stalled()}
	if out.Stalled == "" { // a stalled session holds its gate
		out.Stopped, out.Sealed = s.Stopped(), s.Sealed()
	}
	for i := range v.config.Voters {
		out.Replicas = append(out.Replicas, s.describe(v, i))
	}
	return out
}
