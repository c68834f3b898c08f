package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/belay-storage/belay/pkg/vfs"
)

// Read-back of the floor: this much at once, so many at a time on each file.
const (
	floorChunk = 1 << 20
	floorDepth = 4
)

// floor is what the disks need for a detach at the least: to make the same amount durable in three new files and to read it
// back from them, all three at once.
func (d *detaching) floor(ctx context.Context, mib int) (time.Duration, error) {
	var names []string
	for i := range storesMax {
		names = append(names, filepath.Join(d.dirs[i%len(d.dirs)], fmt.Sprint("floor", i)))
	}
	f := &files{names: names}
	defer f.close(ctx) //nolint:errcheck // they go with their directory
	var open []vfs.File
	for _, n := range names {
		file, err := vfs.OS().Open(n, vfs.Create|vfs.Direct)
		if err != nil {
			return 0, err
		}
		defer file.Close()
		open = append(open, file)
	}
	if err := onEach(open, func(file vfs.File) error { return fillFile(file, mib) }); err != nil {
		return 0, err
	}
	began := time.Now()
	err := onEach(open, vfs.File.Datasync)
	if err == nil {
		err = onEach(open, func(file vfs.File) error { return readFile(file, mib) })
	}
	return time.Since(began), err
}

func onEach(open []vfs.File, do func(vfs.File) error) error {
	var g errgroup.Group
	for _, file := range open {
		g.Go(func() error { return do(file) })
	}
	return g.Wait()
}

func fillFile(file vfs.File, mib int) error {
	p := vfs.AlignedBuffer(floorChunk)
	for i := range mib {
		scramble(p)
		if err := file.WriteAt(p, int64(i)*floorChunk); err != nil {
			return err
		}
	}
	return nil
}

func readFile(file vfs.File, mib int) error {
	var g errgroup.Group
	for part := range floorDepth {
		g.Go(func() error {
			p := vfs.AlignedBuffer(floorChunk)
			for i := part; i < mib; i += floorDepth {
				if err := file.ReadAt(p, int64(i)*floorChunk); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}
