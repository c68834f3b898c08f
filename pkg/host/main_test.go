package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/wire"
)

// The test binary is its own host and its own engines. What an engine does is in the name of its file.
func TestMain(m *testing.M) {
	if os.Args[0] != "belay" {
		os.Exit(m.Run())
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError + 1}))
	var err error
	switch os.Args[1] {
	case "host":
		err = runHost(os.Args[2], log)
	case "engine":
		err = runEngine(log)
	}
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// runHost is a host that BELAY_TEST_AT tells at which step to kill itself (host), or the first or the last engine of its device.
func runHost(state string, log *slog.Logger) error {
	_, without := os.LookupEnv("BELAY_TEST_WITHOUT_RESEND")
	h, err := New(Config{State: state, Version: "test", Machine: ThisMachine(device.FUSE{WithoutResend: without}), WhileNeeded: true, Log: log})
	if err != nil {
		return err
	}
	at, whom, _ := strings.Cut(os.Getenv("BELAY_TEST_AT"), "|")
	os.Unsetenv("BELAY_TEST_AT")
	h.step = func(what string) {
		if what != at {
			return
		}
		at = ""
		h.strike(whom)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return h.Serve(ctx)
}

func (h *Host) strike(whom string) {
	if whom == "host" {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	entries, err := h.book.list(h.boot)
	if err != nil || len(entries) != 1 || len(entries[0].Engines) == 0 {
		return
	}
	victim := entries[0].Engines[0]
	if whom == "last" {
		victim = entries[0].Engines[len(entries[0].Engines)-1]
	}
	_ = syscall.Kill(victim.PID, syscall.SIGKILL)
}

func runEngine(log *slog.Logger) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	p := Program{Version: filepath.Base(exe), FormatMin: 1, FormatMax: 1, Open: openImage, Methods: func(*wire.Server, func() (Session, error)) {}}
	switch p.Version {
	case "exits":
		return errors.New("no")
	case "hangs":
		hang()
	case "format":
		p.FormatMin, p.FormatMax = 2, 3
	case "protocol":
		json.NewEncoder(os.Stdout).Encode(hello{Protocol: Protocol + 1, Version: "future"})
		hang()
	case "stuck":
		p.Open = func(context.Context, Take, func(engine.Progress)) (Session, error) { hang(); return nil, nil }
	case "refuses":
		p.Open = func(context.Context, Take, func(engine.Progress)) (Session, error) { return nil, engine.ErrUnavailable }
	case "crashes":
		time.AfterFunc(time.Second, func() { os.Exit(2) })
	}
	return RunEngine(context.Background(), os.Stdin, os.Stdout, p, log)
}

// hang sleeps, since the runtime ends a process in which nothing can ever happen.
func hang() {
	for {
		time.Sleep(time.Hour)
	}
}

// image is a session on a file. Its lock tells where two sessions are open at once.
type image struct {
	file, lock *os.File
	mute       bool
	lost       chan struct{}
}

func openImage(_ context.Context, t Take, _ func(engine.Progress)) (Session, error) {
	var dir string
	if err := json.Unmarshal(t.Order, &dir); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "away")); err == nil {
		return nil, fmt.Errorf("%w: away", engine.ErrUnavailable)
	}
	if _, err := os.Stat(filepath.Join(dir, "taken")); err == nil {
		return nil, fmt.Errorf("%w: taken", engine.ErrStaleEpoch)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		os.WriteFile(filepath.Join(dir, "violation"), []byte(fmt.Sprint(err)), 0o600) //nolint:errcheck // the error below tells as well
		return nil, errors.New("two writers at once")
	}
	f, err := os.OpenFile(filepath.Join(dir, "image"), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	exe, _ := os.Executable()
	return &image{file: f, lock: lock, mute: filepath.Base(exe) == "mute" && t.Warm, lost: make(chan struct{})}, nil
}

func (i *image) answer() {
	if i.mute {
		hang()
	}
}

func (i *image) ReadAt(p []byte, off int64) error {
	i.answer()
	_, err := i.file.ReadAt(p, off)
	return err
}

func (i *image) WriteAt(p []byte, off int64) error {
	i.answer()
	_, err := i.file.WriteAt(p, off)
	return err
}

func (i *image) Flush() error             { i.answer(); return nil }
func (i *image) Discard(_, _ int64) error { return nil }
func (i *image) Zero(off, n int64) error  { return i.WriteAt(make([]byte, n), off) }
func (i *image) Size() int64              { return imageSize }
func (i *image) Name() string             { return "image" }
func (i *image) BlockSize() int           { return 4096 }
func (i *image) Format() int              { return 1 }
func (i *image) Info() any                { return os.Getpid() }
func (i *image) Prepare() error           { return nil }
func (i *image) Yield() error             { return i.Close() }
func (i *image) Lost() <-chan struct{}    { return i.lost }
func (i *image) Words() any               { return "last words" }
func (i *image) Close() error             { return errors.Join(i.file.Close(), i.lock.Close()) }

const imageSize = 8 << 20
