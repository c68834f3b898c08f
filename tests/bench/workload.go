package main

import (
	"strings"

	"github.com/belay-storage/belay/pkg/volume"
)

// workload is one pattern of requests.
type workload struct {
	name  string
	rw    string // fio's name of it
	block volume.Bytes
	depth int
	sync  bool // every write is followed by a flush
}

// Workloads, each measured on every subject. Sequential ones keep a few requests under way, as read-ahead and write-back do.
var workloads = []workload{
	{name: "4k-write-qd1", rw: "randwrite", block: 4 * volume.KiB, depth: 1},
	{name: "4k-write-qd32", rw: "randwrite", block: 4 * volume.KiB, depth: 32},
	{name: "4k-write-sync", rw: "randwrite", block: 4 * volume.KiB, depth: 1, sync: true},
	{name: "4k-read-qd1", rw: "randread", block: 4 * volume.KiB, depth: 1},
	{name: "4k-read-qd32", rw: "randread", block: 4 * volume.KiB, depth: 32},
	{name: "1m-write-seq", rw: "write", block: volume.MiB, depth: 4},
	{name: "1m-read-seq", rw: "read", block: volume.MiB, depth: 4},
}

func (w workload) writes() bool { return strings.HasSuffix(w.rw, "write") }

// chosen are the workloads whose names contain only; writes leaves out the others.
func chosen(only string, writes bool) (out []workload) {
	for _, w := range workloads {
		if strings.Contains(w.name, only) && (w.writes() || !writes) {
			out = append(out, w)
		}
	}
	return out
}
