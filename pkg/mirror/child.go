package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"runtime/debug"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// processorsMax is how many threads of an engine process run Go code at the same time. Requests wait for disks, and
// threads that look for work are woken for nothing: with 64 a request took a fifth more CPU time than with 4.
const processorsMax = 4

// RunEngine is an engine process: the verb "engine" of the executable, started by a host. See host.RunEngine.
func RunEngine(ctx context.Context, version string, in io.Reader, out io.Writer, log *slog.Logger) error {
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), processorsMax))
	return host.RunEngine(ctx, in, out, Program(Process{Files: vfs.OS(), Version: version, Log: log, Idle: debug.FreeOSMemory}), log)
}

// Process is what an engine process has.
type Process struct {
	Files   vfs.FS // where it finds the stores
	Version string
	Log     *slog.Logger
	Idle    func() // see OpenConfig
	Pages   int    // see OpenConfig
}

// Program is what a process that serves volumes of this engine runs.
func Program(own Process) host.Program {
	count := newCounter()
	return host.Program{
		Version: own.Version, FormatMin: store.FormatVersion, FormatMax: store.FormatVersion,
		Open: func(ctx context.Context, t host.Take, progress func(engine.Progress)) (host.Session, error) {
			return own.open(ctx, t, progress, count)
		},
		Methods: func(server *wire.Server, session func() (host.Session, error)) {
			methods(server, func() (*Session, error) {
				s, err := session()
				if err != nil {
					return nil, err
				}
				return s.(*served).Session, nil
			}, count)
		},
	}
}

// served is a Session with what a host wants to know of it.
type served struct {
	*Session
	unclean bool
}

func (own Process) open(ctx context.Context, t host.Take, progress func(engine.Progress), count *counter) (host.Session, error) {
	var o order
	if err := json.Unmarshal(t.Order, &o); err != nil {
		return nil, fmt.Errorf("engine process: order: %w", err)
	}
	var installation, boot quorum.UUID
	if err := errors.Join(installation.UnmarshalText([]byte(o.Installation)), boot.UnmarshalText([]byte(o.Boot))); err != nil {
		return nil, fmt.Errorf("engine process: order: %w", err)
	}
	c := OpenConfig{
		ID: o.Volume, Purpose: ForDevice, Attachment: o.Attachment.Epoch, Boot: boot, Log: own.Log, Events: count.events(), Progress: progress, Floor: o.Floor,
		Find:    func(id quorum.UUID) (*store.Dir, error) { return findHome(own.Files, o.Stores, id, installation) },
		Holder:  holderText("engine", string(o.Node), o.Volume, t.Self),
		Stores:  openHomes(own.Files, o.Stores, installation, own.Log),
		Suspend: true, Idle: own.Idle, Pages: own.Pages,
	}
	if t.Warm {
		c.Warm = warmOf(t)
	}
	s, err := Open(ctx, c)
	if away := len(o.Stores) - len(c.Stores); isNotFound(err) && away > 0 {
		// What is not seen may be there: nobody can tell before the stores are back.
		return nil, fmt.Errorf("%w: volume %s: %d of %d stores are away, and the others do not know it: %v", engine.ErrUnavailable, o.Volume, away, len(o.Stores), err) //nolint:errorlint // it is not "not found"
	}
	if err != nil {
		return nil, err
	}
	return &served{Session: s, unclean: s.unclean}, nil
}

func openHomes(fsys vfs.FS, homes []home, installation quorum.UUID, log *slog.Logger) (dirs []*store.Dir) {
	for _, h := range homes {
		d, err := h.open(fsys, installation)
		if err != nil {
			log.Warn("store cannot be opened", "store", h.Path, "cause", err)
			continue
		}
		dirs = append(dirs, d)
	}
	return dirs
}

// warmOf is what is known of the engine before.
func warmOf(t host.Take) *Warm {
	w := &Warm{After: readyOf(t.Previous).Writer}
	var last words
	if json.Unmarshal(t.Words, &last) == nil {
		w.Lossy = last.Lossy
	}
	return w
}

func (s *served) Name() string   { return string(s.id) }
func (s *served) BlockSize() int { return s.super.LogicalBlockSize }
func (s *served) Format() int    { return store.FormatVersion }
func (s *served) Prepare() error { return s.Flush() }

func (s *served) Info() any {
	return ready{Writer: s.epoch, Unclean: s.unclean, BlockSize: s.super.LogicalBlockSize}
}

func (s *served) Words() any {
	return words{Cause: fmt.Sprint(s.LostCause()), Lossy: s.LossyMembers()}
}

// Close flushes where the volume is not sealed: what was not synced should not be lost for want of it.
func (s *served) Close() error {
	var err error
	if !s.Sealed() {
		err = s.flushShared() // and not Flush, which waits for the next engine where the session is lost
	}
	s.Session.Close()
	return err
}

// methods are what the node half can ask.
func methods(server *wire.Server, session func() (*Session, error), count *counter) {
	wire.Handle(server, "tally", func(ctx context.Context, _ nothing, report func(tally)) (nothing, error) {
		count.follow(ctx, report)
		return nothing{}, nil
	})
	answer(server, session, "status", func(_ context.Context, s *Session, _ nothing, _ func(engine.Progress)) (status, error) {
		return s.status(), nil
	})
	answer(server, session, "stop", func(_ context.Context, s *Session, _ nothing, _ func(engine.Progress)) (nothing, error) {
		return nothing{}, s.Stop()
	})
	answer(server, session, "evidence", func(ctx context.Context, s *Session, _ nothing, report func(engine.Progress)) (engine.Barrier, error) {
		return s.Evidence(ctx, report)
	})
	answer(server, session, "seal", func(_ context.Context, s *Session, q sealing, _ func(engine.Progress)) (nothing, error) {
		return nothing{}, s.Seal(q.Barrier, q.Receipt)
	})
	answer(server, session, "expand", func(_ context.Context, s *Session, size volume.Bytes, _ func(engine.Progress)) (nothing, error) {
		return nothing{}, s.Update(growTo(size))
	})
	answer(server, session, "format", func(_ context.Context, s *Session, f engine.Format, _ func(engine.Progress)) (nothing, error) {
		return nothing{}, s.Update(formatTo(f))
	})
	answer(server, session, "quarantine", func(_ context.Context, s *Session, f []engine.Finding, _ func(engine.Progress)) (nothing, error) {
		return nothing{}, s.Update(quarantine(f))
	})
	answer(server, session, "verify", func(ctx context.Context, s *Session, _ nothing, report func(engine.Progress)) (engine.Verification, error) {
		return s.ScrubNow(ctx, report)
	})
}

// answer adds a method of the session. A process that stands by has none, and the caller asks the one that serves.
func answer[Req, Resp any](server *wire.Server, session func() (*Session, error), name string,
	f func(context.Context, *Session, Req, func(engine.Progress)) (Resp, error),
) {
	wire.Handle(server, name, func(ctx context.Context, q Req, report func(engine.Progress)) (resp Resp, err error) {
		s, err := session()
		if err != nil {
			return resp, err
		}
		return f(ctx, s, q, report)
	})
}

func (s *Session) status() status {
	v := s.view.Load()
	out := status{Writer: s.epoch, Size: v.config.Size, Blank: s.Blank(), Stalled: s.Stalled(), Stopped: s.Stopped(), Sealed: s.Sealed()}
	for i := range v.config.Voters {
		out.Replicas = append(out.Replicas, s.describe(v, i))
	}
	return out
}
