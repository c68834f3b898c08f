package device

import (
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// The benchmarks run fio for fioSeconds each, whatever -benchtime says: one iteration is one run.
const fioSeconds = 3

type fioResult struct {
	Jobs []struct {
		Error       int
		Read, Write struct {
			IOPS    float64
			BwBytes float64 `json:"bw_bytes"`
			ClatNS  struct {
				Percentile map[string]float64
			} `json:"clat_ns"`
		}
	}
}

func BenchmarkMemory(b *testing.B) {
	m := newMemory(b, 256<<20, 256<<20)
	for i := 0; i < len(m.bytes); i += 4096 {
		m.bytes[i] = 1
	}
	benchmark(b, m)
}

// BenchmarkFile has a file with O_DIRECT behind the device.
func BenchmarkFile(b *testing.B) {
	image := b.TempDir() + "/image"
	if err := os.WriteFile(image, make([]byte, 256<<20), 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := openFile(image)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.f.Close() })
	benchmark(b, f)
}

func benchmark(b *testing.B, backend Backend) {
	for _, c := range []struct {
		name, rw, bs string
		depth        int
	}{
		{"write4KiB/QD32", "randwrite", "4k", 32}, {"read4KiB/QD32", "randread", "4k", 32},
		{"write4KiB/QD1", "randwrite", "4k", 1}, {"read4KiB/QD1", "randread", "4k", 1},
		{"write1MiB/QD8", "write", "1m", 8}, {"read1MiB/QD8", "read", "1m", 8},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newRig(b, backend, 4096)
			for b.Loop() {
				fio(b, r.path, c.rw, c.bs, c.depth)
			}
		})
	}
}

// fio reports operations a second, bandwidth, latency, and the CPU time of this process for each operation.
func fio(b *testing.B, path, rw, bs string, depth int) {
	cpu := cpuTime(b)
	out, err := exec.Command("fio", "--name=b", "--filename="+path, "--rw="+rw, "--bs="+bs, "--iodepth="+strconv.Itoa(depth),
		"--ioengine=libaio", "--direct=1", "--time_based", "--runtime="+strconv.Itoa(fioSeconds), "--output-format=json").Output()
	if err != nil {
		b.Fatalf("fio: %v\n%s", err, out)
	}
	var f fioResult
	if err := json.Unmarshal(out, &f); err != nil || len(f.Jobs) != 1 || f.Jobs[0].Error != 0 {
		b.Fatalf("fio: %v\n%s", err, out)
	}
	side := f.Jobs[0].Write
	if side.IOPS == 0 {
		side = f.Jobs[0].Read
	}
	b.ReportMetric(side.IOPS, "IOPS")
	b.ReportMetric(side.BwBytes/(1<<20), "MiB/s")
	b.ReportMetric(side.ClatNS.Percentile["50.000000"]/1e3, "p50-us")
	b.ReportMetric(side.ClatNS.Percentile["99.000000"]/1e3, "p99-us")
	b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/(side.IOPS*fioSeconds), "cpu-us/op")
	b.ReportMetric(0, "ns/op")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
