package sim

import (
	"flag"
	"fmt"
	"hash"
	"hash/fnv"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/belay-storage/belay/pkg/vfs"
)

var repeats = flag.Int("sim.repeats", 25, "how many seeds TestRepeats runs, from -sim.from on")

// TestRepeats: a seed has the same run each time, to the nanosecond, and leaves the same on the disks.
func TestRepeats(t *testing.T) {
	for seed := *from; seed < *from+uint64(*repeats); seed++ {
		// The kernel may take the processor away for long enough that the Go scheduler changes the order of two goroutines, which no seed
		// decides: that happens now and then on a machine that is busy, and hardly twice.
		const tries = 3
		same := false
		for n := 0; n < tries && !same; n++ {
			one, _ := simulate(t, seed, traceHash)
			two, _ := simulate(t, seed, traceHash)
			same = one.Hash == two.Hash
			if !same {
				t.Logf("seed %d: two runs differ, try %d of %d", seed, n+1, tries)
			}
		}
		if !same {
			t.Errorf("seed %d has two runs: %s", seed, parting(t, seed))
		}
	}
}

// parting tells where two runs of a seed part.
func parting(t *testing.T, seed uint64) string {
	t.Helper()
	_, one := simulate(t, seed, traceAll)
	_, two := simulate(t, seed, traceAll)
	a, b := ordered(one), ordered(two)
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("after\n%s\none has\n%s\nand the other\n%s", strings.Join(a[max(0, i-8):i], "\n"), strings.Join(a[i:min(i+4, len(a))], "\n"), strings.Join(b[i:min(i+4, len(b))], "\n"))
		}
	}
	return "told twice they are the same"
}

// ordered are the lines, those of one moment in the order of their text.
func ordered(told string) []string {
	lines := strings.Split(told, "\n")
	moment := func(line string) string {
		at, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		return at
	}
	for i := 0; i < len(lines); {
		n := i + 1
		for n < len(lines) && moment(lines[n]) == moment(lines[i]) {
			n++
		}
		slices.Sort(lines[i:n])
		i = n
	}
	return lines
}

// contents is a line about all that is on the disks.
func (w *world) contents() string {
	var b strings.Builder
	for _, d := range append([]*disk{w.root}, w.disks...) {
		fmt.Fprintf(&b, "disk %s:\n", d.name)
		describe(&b, d.mem.CrashClone(nil), "/")
	}
	return b.String()
}

// describe tells each file below the directory with a sum of what it holds.
func describe(b *strings.Builder, mem *vfs.Mem, dir string) {
	entries, err := mem.ReadDir(dir)
	if err != nil {
		fmt.Fprintf(b, "  %s: %v\n", dir, err)
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if e.IsDir() {
			describe(b, mem, name)
			continue
		}
		h := fnv.New64a()
		fmt.Fprintf(b, "  %s: %v %x\n", name, sum(h, mem, name), h.Sum(nil))
	}
}

// sum adds a file to the hash, holes left out.
func sum(h hash.Hash, mem *vfs.Mem, name string) error {
	f, err := mem.Open(name, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Info()
	buf := make([]byte, 64<<10)
	for off := int64(0); err == nil && off < info.Size; off += int64(len(buf)) {
		if off, err = f.NextData(off); err == nil && off < info.Size {
			fmt.Fprintf(h, "%d", off)
			err = f.ReadAt(buf, off)
			h.Write(buf)
		}
	}
	return err
}
