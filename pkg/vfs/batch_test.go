package vfs_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/vfs"
)

func TestDo(t *testing.T) {
	eachSystem(t, func(t *testing.T, fsys vfs.FS, dir string) {
		var writes, reads []vfs.Transfer
		for i := range 3 {
			f := open(t, fsys, filepath.Join(dir, fmt.Sprint(i)), vfs.Create|vfs.Direct)
			for j := range 2 {
				off := int64(j) << 20
				writes = append(writes, vfs.Transfer{File: f, Write: true, P: pattern(8192, uint64(2*i+j)), Off: off})
				reads = append(reads, vfs.Transfer{File: f, P: vfs.AlignedBuffer(16384), Off: off})
			}
		}
		for range 100 { // long enough for requests that come alone to be waited for in the kernel
			ran := false
			vfs.Do(writes, func() { ran = true })
			vfs.Do(reads, nil)
			if !ran {
				t.Fatal("did not run what was to run meanwhile")
			}
			for i, r := range reads {
				want := append(bytes.Clone(writes[i].P), make([]byte, 8192)...) // a hole, or past the end
				if writes[i].Err != nil || r.Err != nil || !bytes.Equal(r.P, want) {
					t.Fatalf("transfer %d: %v, %v", i, writes[i].Err, r.Err)
				}
				clear(r.P)
			}
		}
		vfs.Do(nil, nil)
	})
}

func TestDoReportsEachError(t *testing.T) {
	eachSystem(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "f")
		good := open(t, fsys, name, vfs.Create|vfs.Direct)
		closed := open(t, fsys, name, vfs.Direct)
		must(t, closed.Close())
		reader := open(t, fsys, name, vfs.Direct|vfs.ReadOnly)
		p := pattern(4096, 1)
		for range 50 {
			ts := []vfs.Transfer{
				{File: closed, Write: true, P: p},
				{File: good, Write: true, P: p, Err: fs.ErrInvalid},
				{File: reader, Write: true, P: p},
				{File: good, Write: true, P: p[:100]},
				{File: good, Off: -4096, P: p},
				{File: good, P: p[:0]},
			}
			vfs.Do(ts, nil)
			for i, want := range []error{fs.ErrClosed, nil, syscall.EBADF, syscall.EINVAL, syscall.EINVAL, nil} {
				wantErr(t, ts[i].Err, want)
			}
		}
	})
}

func TestDoFailsWhereTheHookSaysSo(t *testing.T) {
	fsys := vfs.Faulty(vfs.NewMem(), vfs.FailNth(1, syscall.EIO, vfs.OpWrite))
	a, b := open(t, fsys, "/a", vfs.Create), open(t, fsys, "/b", vfs.Create)
	ts := []vfs.Transfer{{File: a, Write: true, P: []byte("x")}, {File: b, Write: true, P: []byte("x")}}
	vfs.Do(ts, nil)
	if (ts[0].Err == nil) == (ts[1].Err == nil) {
		t.Fatalf("%v, %v", ts[0].Err, ts[1].Err)
	}
}

// TestDoAloneAndInCompany goes back and forth between one caller, which waits in the kernel, and many, which are woken:
// a completion that nobody is told of would leave a caller waiting for ever.
func TestDoAloneAndInCompany(t *testing.T) {
	fsys, dir := vfs.OS(), diskDir(t)
	files := []vfs.File{
		open(t, fsys, filepath.Join(dir, "a"), vfs.Create|vfs.Direct),
		open(t, fsys, filepath.Join(dir, "b"), vfs.Create|vfs.Direct),
	}
	for round := range 20 {
		writeAndRead(t, files, 0, 100)
		var wg sync.WaitGroup
		for w := range 2 + round%7 {
			wg.Go(func() { writeAndRead(t, files, int64(1+w)<<16, 5*w+1) })
		}
		wg.Wait()
	}
}

// writeAndRead writes and reads back a block of each file, now in one Do, now by themselves.
func writeAndRead(t *testing.T, files []vfs.File, off int64, times int) {
	p, q := vfs.AlignedBuffer(4096), vfs.AlignedBuffer(4096)
	for i := range times {
		p[0], p[4095] = byte(i), byte(i+1)
		ts := []vfs.Transfer{{File: files[0], Write: true, P: p, Off: off}, {File: files[1], Write: true, P: p, Off: off}}
		vfs.Do(ts, func() {
			if i%3 == 0 { // as where the engine looks for checksums while it writes
				if err := files[0].ReadAt(q, 1<<30); err != nil {
					t.Error(err)
				}
			}
		})
		err := files[i%2].ReadAt(q, off)
		if ts[0].Err != nil || ts[1].Err != nil || err != nil || !bytes.Equal(p, q) {
			t.Errorf("block at %d: %v, %v, %v", off, ts[0].Err, ts[1].Err, err)
			return
		}
	}
}
