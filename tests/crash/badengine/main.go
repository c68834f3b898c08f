// Command badengine is a version of the engine that nobody should be upgraded to: it fails in the way that its file is called.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mirror"
	"github.com/belay-storage/belay/pkg/wire"
)

// ways are how it fails, by the name of its file.
var ways = map[string]func() error{
	"exits":   func() error { return errors.New("this version does not run here") },
	"hangs":   hang,
	"garbage": func() error { fmt.Println("usage: badengine [flags]"); return hang() },
	"protocol": func() error {
		fmt.Println(`{"protocol":99,"version":"protocol","formatMin":1,"formatMax":1}`)
		return hang()
	},
	"format": run(host.Program{FormatMin: 1000, FormatMax: 1001, Open: refuse}),
	// The rest says hello and is given the device.
	"refuses": run(host.Program{Open: refuse}),
	"stuck":   run(host.Program{Open: func(context.Context, host.Take, func(engine.Progress)) (host.Session, error) { return nil, hang() }}),
	"breaks": run(host.Program{Open: func(context.Context, host.Take, func(engine.Progress)) (host.Session, error) {
		go panic("this version breaks when it takes over") // not in the call, which would be answered
		return nil, hang()
	}}),
	"mute":  run(host.Program{Open: openMute}),
	"young": diesYoung,
}

// hang never returns, and is no deadlock that the runtime could see.
func hang() error {
	for {
		time.Sleep(time.Hour)
	}
}

func main() {
	exe, err := os.Executable()
	if way := ways[filepath.Base(exe)]; err == nil && way != nil {
		err = way()
	} else {
		err = errors.Join(err, fmt.Errorf("no way to fail is called %s", exe))
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(3)
}

// version is what it says it is.
const version = "bad"

func run(p host.Program) func() error {
	p.Version = version
	if p.FormatMin == 0 {
		p.FormatMax = 1000 // from 0 on: whatever the volume has
	}
	p.Methods = func(*wire.Server, func() (host.Session, error)) {}
	return func() error { return host.RunEngine(context.Background(), os.Stdin, os.Stdout, p, slog.Default()) }
}

func refuse(context.Context, host.Take, func(engine.Progress)) (host.Session, error) {
	return nil, fmt.Errorf("%w: this version finds no replica", engine.ErrUnavailable)
}

// diesYoung is a real engine that serves, and crashes within the time for which the one before stands by.
func diesYoung() error {
	const latest = 2500 * time.Millisecond
	time.AfterFunc(200*time.Millisecond+rand.N(latest), func() { panic("this version crashes after a while") })
	return mirror.RunEngine(context.Background(), version, os.Stdin, os.Stdout, slog.Default())
}

// mute takes requests and answers none. It writes nothing anywhere.
type mute struct{ blockSize int }

func openMute(_ context.Context, t host.Take, _ func(engine.Progress)) (host.Session, error) {
	var before struct{ BlockSize int }
	err := json.Unmarshal(t.Previous, &before)
	return mute{before.BlockSize}, err
}

func (mute) ReadAt([]byte, int64) error  { return hang() }
func (mute) WriteAt([]byte, int64) error { return hang() }
func (mute) Flush() error                { return hang() }
func (mute) Discard(int64, int64) error  { return hang() }
func (mute) Zero(int64, int64) error     { return hang() }
func (mute) Size() int64                 { return 1 << 30 }
func (mute) Name() string                { return "mute" }
func (m mute) BlockSize() int            { return m.blockSize }
func (mute) Format() int                 { return 1 }
func (m mute) Info() any                 { return m }
func (mute) Prepare() error              { return nil }
func (mute) Yield() error                { return nil }
func (mute) Lost() <-chan struct{}       { return nil }
func (mute) Words() any                  { return nil }
func (mute) Close() error                { return nil }
