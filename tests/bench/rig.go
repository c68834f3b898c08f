package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mirror"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

const (
	node      = volume.NodeID("bench")
	storesMax = 3
	// overcommit lets thin volumes of a terabyte be made on any disk.
	overcommit  = 1e6
	closeWithin = time.Minute
)

// rig is the real engine: stores on disk, a host with one engine process for each attached volume, FUSE and loop devices.
type rig struct {
	*mirror.Engine
	host *host.Client
}

// newRig makes stores in the directories, starts a host and an engine on them.
func newRig(ctx context.Context, belay string, dirs []string) (*rig, error) {
	executable, err := filepath.Abs(belay)
	if err != nil {
		return nil, err
	}
	state := filepath.Join(dirs[0], "state")
	r := &rig{host: host.NewClient(state)}
	if _, err := r.host.Ensure(ctx, host.Launch{Executable: executable, Args: []string{"belay", "host", "--while-needed", "--state", state}, Log: os.Stderr}); err != nil {
		return nil, err
	}
	c := mirror.Config{
		FS: vfs.OS(), State: state, Node: node, Overcommit: overcommit, Host: r.host, Executable: executable,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	for i := range storesMax {
		c.Stores = append(c.Stores, filepath.Join(dirs[i%len(dirs)], fmt.Sprint("store", i)))
	}
	if r.Engine, err = mirror.New(c); err == nil {
		err = r.Start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, r.endHost(context.WithoutCancel(ctx)))
	}
	return r, nil
}

// create makes a volume and attaches it. Nothing verifies it in the background: that would do a detach's work before it.
func (r *rig) create(ctx context.Context, id volume.ID, size volume.Bytes, replicas int) (volume.Attachment, engine.Device, error) {
	spec := engine.Spec{ID: id, Name: string(id), Size: size, Parameters: map[string]string{
		mirror.ParameterReplicas: fmt.Sprint(replicas), mirror.ParameterVerify: "off",
	}}
	if _, err := r.Create(ctx, spec); err != nil {
		return volume.Attachment{}, engine.Device{}, err
	}
	return r.attach(ctx, id)
}

func (r *rig) attach(ctx context.Context, id volume.ID) (volume.Attachment, engine.Device, error) {
	a, err := r.Publish(ctx, id, node, engine.PublishOptions{})
	if err != nil {
		return a, engine.Device{}, err
	}
	d, err := r.Attach(ctx, a)
	return a, d, err
}

// seal takes the volume through what an unstage adds to an unmount.
func (r *rig) seal(ctx context.Context, a volume.Attachment) (b engine.Barrier, err error) {
	if err = r.Barrier(ctx, a); err != nil {
		return b, err
	}
	if b, err = r.Evidence(ctx, a, nil); err != nil {
		return b, err
	}
	return b, r.Seal(ctx, b, fmt.Appendf(nil, "receipt of a benchmark at %s", b.View))
}

// remove detaches the volume and deletes it.
func (r *rig) remove(ctx context.Context, a volume.Attachment) error {
	if _, err := r.seal(ctx, a); err != nil {
		return err
	}
	return errors.Join(r.Detach(ctx, a), r.Unpublish(ctx, a), r.Delete(ctx, a.Volume))
}

// close takes away what an interrupt left attached, and ends the host.
func (r *rig) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
	defer cancel()
	left, err := r.host.Devices(ctx)
	errs := []error{err}
	for _, d := range left {
		errs = append(errs, r.host.GiveUp(ctx, d.Volume, "the benchmark has ended"), r.host.Detach(ctx, d.Volume))
	}
	return errors.Join(append(errs, r.Close(ctx), r.endHost(ctx))...)
}

// endHost returns when the host has ended: it writes into a directory that is removed then.
func (r *rig) endHost(ctx context.Context) error {
	about, err := r.host.About(ctx)
	if err != nil {
		return err
	}
	if err := syscall.Kill(about.PID, syscall.SIGTERM); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if _, err := r.host.About(ctx); err != nil {
			return nil //nolint:nilerr // nobody answers
		}
		time.Sleep(10 * time.Millisecond)
	}
	return ctx.Err()
}

// engineOf is the engine process of a volume.
func (r *rig) engineOf(ctx context.Context, id volume.ID) (int, error) {
	d, err := r.host.Device(ctx, id)
	if err == nil && d.Engine.PID == 0 {
		err = fmt.Errorf("volume %s has no engine process: it is %s: %s", id, d.State, d.Cause)
	}
	return d.Engine.PID, err
}
