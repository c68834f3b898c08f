package vfs_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/vfs"
)

// benchSize is the size of each file of the benchmarks in bytes; it is written before, as a store's hot blocks are.
const benchSize = 256 << 20

// A benchWay is a way to make transfers.
type benchWay struct {
	name    string
	fsys    vfs.FS
	batches bool // writes to several files are one Do, not a goroutine for each
}

// BenchmarkDirect measures transfers past the page cache on 1 or 3 files with 1 or 32 requests in flight. A write goes to
// every file at once and is done when all have it, as the engine does it; a read goes to one file. Beside the usual
// it reports the median and the 99th percentile in microseconds, and CPU time per request.
func BenchmarkDirect(b *testing.B) {
	ways := []benchWay{{"blocking", vfs.OSBlocking(), false}, {"uring", vfs.OS(), false}, {"do", vfs.OS(), true}}
	if err := vfs.Uring(); err != nil {
		b.Logf("all of them block: %v", err)
	}
	names := makeBenchFiles(b)
	for _, kind := range []string{"write", "read"} {
		for _, files := range []int{1, 3} {
			for _, depth := range []int{1, 32} {
				for _, kib := range []int{4, 64, 1024} {
					for _, way := range ways {
						b.Run(fmt.Sprintf("%s/files=%d/depth=%d/%dKiB/%s", kind, files, depth, kib, way.name), func(b *testing.B) {
							benchTransfers(b, way, names[:files], kind == "write", depth, kib<<10)
						})
					}
				}
			}
		}
	}
}

// makeBenchFiles writes three files, so that the benchmarks measure transfers and not the allocation of blocks.
func makeBenchFiles(b *testing.B) (names []string) {
	dir := diskDir(b)
	chunk := pattern(4<<20, 1)
	for i := range 3 {
		names = append(names, filepath.Join(dir, fmt.Sprint(i)))
		f := open(b, vfs.OSBlocking(), names[i], vfs.Create|vfs.Direct)
		for off := int64(0); off < benchSize; off += int64(len(chunk)) {
			must(b, f.WriteAt(chunk, off))
		}
		must(b, f.Datasync())
	}
	return names
}

func benchTransfers(b *testing.B, way benchWay, names []string, write bool, depth, size int) {
	var files []vfs.File
	for _, name := range names {
		files = append(files, open(b, way.fsys, name, vfs.Direct))
	}
	var next atomic.Int64
	times := make([]time.Duration, b.N)
	cpu := cpuTime()
	b.SetBytes(int64(size))
	b.ResetTimer()
	var wg sync.WaitGroup
	for range depth {
		wg.Go(func() {
			p := vfs.AlignedBuffer(size)
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				off := rand.Int64N(benchSize/int64(size)) * int64(size)
				start := time.Now()
				if write {
					writeAll(b, files, p, off, way.batches)
				} else if err := files[int(i)%len(files)].ReadAt(p, off); err != nil {
					b.Error(err)
				}
				times[i] = time.Since(start)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	slices.Sort(times)
	b.ReportMetric(float64(times[b.N/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(times[b.N*99/100].Nanoseconds())/1e3, "p99-µs")
	b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/1e3/float64(b.N), "cpu-µs/op")
}

// writeAll writes to all files at once.
func writeAll(b *testing.B, files []vfs.File, p []byte, off int64, batch bool) {
	ts := make([]vfs.Transfer, len(files))
	var wg sync.WaitGroup
	for i, f := range files {
		ts[i] = vfs.Transfer{File: f, Write: true, P: p, Off: off}
		if !batch && i > 0 {
			wg.Go(func() { ts[i].Err = f.WriteAt(p, off) })
		}
	}
	if batch {
		vfs.Do(ts, nil)
	} else {
		ts[0].Err = files[0].WriteAt(p, off)
	}
	wg.Wait()
	for _, t := range ts {
		if t.Err != nil {
			b.Error(t.Err)
		}
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
