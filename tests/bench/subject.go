package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/belay-storage/belay/pkg/volume"
)

// subject is what is measured.
type subject interface {
	name() string
	// open makes it, empty and thin; close removes it, and does nothing where it is not open.
	open(ctx context.Context) error
	close(ctx context.Context) error
	paths() []string
	// engine is the process that serves it, 0 for none.
	engine() int
}

// Names of the subjects.
const (
	nameRaw    = "raw file"
	nameLoop   = "loop"
	nameBelay1 = "belay, 1 store"
	nameBelay3 = "belay, 3 stores"
	nameLimit  = "limit of 3"
)

// files are raw files. A write goes to all of them, a read to any one.
type files struct {
	label string
	names []string
	size  volume.Bytes
}

func (f *files) name() string    { return f.label }
func (f *files) paths() []string { return f.names }
func (f *files) engine() int     { return 0 }

func (f *files) open(context.Context) error {
	for _, n := range f.names {
		if err := makeThin(n, f.size); err != nil {
			return err
		}
	}
	return nil
}

func makeThin(name string, size volume.Bytes) error {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(file.Truncate(int64(size)), file.Close())
}

func (f *files) close(context.Context) error {
	for _, n := range f.names {
		if err := os.Remove(n); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// loop is the kernel's loop device, with direct I/O, on a raw file.
type loop struct {
	file   files
	device string
}

func (l *loop) name() string    { return nameLoop }
func (l *loop) paths() []string { return []string{l.device} }
func (l *loop) engine() int     { return 0 }

func (l *loop) open(ctx context.Context) error {
	if err := l.file.open(ctx); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "losetup", "--find", "--show", "--direct-io=on", "--sector-size=4096", l.file.names[0]).CombinedOutput()
	if err != nil {
		return fmt.Errorf("losetup: %w: %s", err, out)
	}
	l.device = strings.TrimSpace(string(out))
	return nil
}

func (l *loop) close(context.Context) error {
	if l.device != "" { // also after an interrupt: not with the context that it ended
		if out, err := exec.Command("losetup", "--detach", l.device).CombinedOutput(); err != nil {
			return fmt.Errorf("losetup: %w: %s", err, out)
		}
		l.device = ""
	}
	return l.file.close(context.Background())
}

// belay is a volume of ours.
type belay struct {
	rig      *rig
	label    string
	id       volume.ID
	replicas int
	size     volume.Bytes

	attachment volume.Attachment
	path       string
	pid        int
}

func (b *belay) name() string    { return b.label }
func (b *belay) paths() []string { return []string{b.path} }
func (b *belay) engine() int     { return b.pid }

func (b *belay) open(ctx context.Context) error {
	a, d, err := b.rig.create(ctx, b.id, b.size, b.replicas)
	if err != nil {
		return err
	}
	b.attachment, b.path = a, d.Path
	b.pid, err = b.rig.engineOf(ctx, b.id)
	return err
}

func (b *belay) close(ctx context.Context) error {
	if b.path == "" || ctx.Err() != nil { // after an interrupt the rig's end is enough
		return nil
	}
	b.path = ""
	return b.rig.remove(ctx, b.attachment)
}

// subjects are those of one run whose names contain only; the files share out the directories as the stores do.
func subjects(r *rig, dirs []string, size volume.Bytes, only string) []subject {
	at := func(i int, name string) string { return filepath.Join(dirs[i%len(dirs)], name) }
	all := []subject{
		&files{nameRaw, []string{at(0, "raw")}, size},
		&loop{file: files{"", []string{at(0, "loop")}, size}},
		&belay{rig: r, label: nameBelay1, id: "bench-1", replicas: 1, size: size},
		&belay{rig: r, label: nameBelay3, id: "bench-3", replicas: 3, size: size},
		&files{nameLimit, []string{at(0, "limit0"), at(1, "limit1"), at(2, "limit2")}, size},
	}
	return slices.DeleteFunc(all, func(s subject) bool { return !strings.Contains(s.name(), only) })
}
