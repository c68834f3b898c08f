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

// BenchmarkDirect measures transfers past the page cache on 1 or 3 files with 1 or 32 requests in flight. A write goes to
// every file at once and is done when all have it, as the engine does it; a read goes to one file. Beside the usual
// it reports the median and the 99th percentile in microseconds, and CPU time per request.
func BenchmarkDirect(b *testing.B) {
	systems := map[string]vfs.FS{"blocking": vfs.OSBlocking(), "uring": vfs.OS()}
	if err := vfs.Uring(); err != nil {
		b.Logf("without io_uring: %v", err)
		delete(systems, "uring")
	}
	names := makeBenchFiles(b)
	for _, write := range []bool{true, false} {
		for _, files := range []int{1, 3} {
			for _, depth := range []int{1, 32} {
				for _, kib := range []int{4, 64, 1024} {
					name := fmt.Sprintf("%s/files=%d/depth=%d/%dKiB", map[bool]string{true: "write", false: "read"}[write], files, depth, kib)
					for system, fsys := range systems {
						b.Run(name+"/"+system, func(b *testing.B) {
							benchTransfers(b, fsys, names[:files], write, depth, kib<<10)
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

func benchTransfers(b *testing.B, fsys vfs.FS, names []string, write bool, depth, size int) {
	var files []vfs.File
	for _, name := range names {
		files = append(files, open(b, fsys, name, vfs.Direct))
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
					writeAll(b, files, p, off)
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
func writeAll(b *testing.B, files []vfs.File, p []byte, off int64) {
	var wg sync.WaitGroup
	for _, f := range files[1:] {
		wg.Go(func() {
			if err := f.WriteAt(p, off); err != nil {
				b.Error(err)
			}
		})
	}
	if err := files[0].WriteAt(p, off); err != nil {
		b.Error(err)
	}
	wg.Wait()
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
