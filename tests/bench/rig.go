package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/engine"
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

// rig is the real engine: stores on disk, one engine process for each attached volume, FUSE and loop devices.
type rig struct {
	*mirror.Engine
	ids []volume.ID
}

// newRig makes stores in the directories and starts an engine on them.
func newRig(ctx context.Context, belay string, dirs []string) (*rig, error) {
	executable, err := filepath.Abs(belay)
	if err != nil {
		return nil, err
	}
	c := mirror.Config{
		FS: vfs.OS(), State: filepath.Join(dirs[0], "state"), Node: node, Overcommit: overcommit, Executable: executable,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	for i := range storesMax {
		c.Stores = append(c.Stores, filepath.Join(dirs[i%len(dirs)], fmt.Sprint("store", i)))
	}
	e, err := mirror.New(c)
	if err == nil {
		err = e.Start(ctx)
	}
	if err != nil {
		return nil, err
	}
	return &rig{Engine: e}, nil
}

// create makes a volume and attaches it. Nothing verifies it in the background: that would do a detach's work before it.
func (r *rig) create(ctx context.Context, id volume.ID, size volume.Bytes, replicas int) (volume.Attachment, engine.Device, error) {
	r.ids = append(r.ids, id)
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

// close ends the engine processes and removes what is left of their devices.
func (r *rig) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
	defer cancel()
	errs := []error{r.Close(ctx)}
	left, err := device.Leftovers()
	errs = append(errs, err)
	for _, l := range left {
		for _, id := range r.ids {
			if l.Volume == string(id) {
				errs = append(errs, device.Remove(ctx, l.Path))
			}
		}
	}
	return errors.Join(errs...)
}

// engineOf finds the engine process of a volume among this process's children.
func engineOf(id volume.ID) (int, error) {
	pids, err := processes()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !strings.HasSuffix(string(line), "\x00engine\x00"+string(id)+"\x00") {
			continue
		}
		if s, err := statOf(pid); err == nil && s.parent == os.Getpid() {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("volume %s has no engine process", id)
}
