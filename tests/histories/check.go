package histories

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Failure is a sector that no device can have answered for, or whose history could not be judged in time.
type Failure struct {
	Sector  int64
	Unknown bool // not judged in time
	history history
}

// Result is what was found.
type Result struct {
	Sectors  int // that have a history
	Steps    int // in all histories
	Longest  int // steps of the longest one
	Failures []Failure
}

// Check judges the history of every sector, each within the time given.
func Check(all []Operation, within time.Duration) Result { return judge(split(all), within) }

// CheckSector is Check of one sector.
func CheckSector(all []Operation, n int64, within time.Duration) Result {
	return judge(split(of(all, n)), within)
}

func judge(histories map[int64]history, within time.Duration) Result {
	r := Result{Sectors: len(histories)}
	model := sector.ToModel()
	var mu sync.Mutex
	var group sync.WaitGroup
	turn := make(chan struct{}, runtime.GOMAXPROCS(0))
	for _, n := range slices.Sorted(maps.Keys(histories)) {
		h := histories[n]
		r.Steps, r.Longest = r.Steps+len(h), max(r.Longest, len(h))
		turn <- struct{}{}
		group.Go(func() {
			defer func() { <-turn }()
			if verdict := porcupine.CheckOperationsTimeout(model, h, within); verdict != porcupine.Ok {
				mu.Lock()
				defer mu.Unlock()
				r.Failures = append(r.Failures, Failure{Sector: n, Unknown: verdict == porcupine.Unknown, history: h})
			}
		})
	}
	group.Wait()
	slices.SortFunc(r.Failures, func(a, b Failure) int { return int(a.Sector - b.Sector) })
	return r
}

// shortest is the beginning of the history that is wrong by itself: up to the first return before which all may still have been well. What had been
// called by then and not returned is there as what perhaps happened, or is left out where it is a read.
func (f Failure) shortest(within time.Duration) history {
	if f.Unknown {
		return f.history
	}
	ends := make([]int64, 0, len(f.history))
	for _, o := range f.history {
		ends = append(ends, o.Return)
	}
	slices.Sort(ends)
	model := sector.ToModel()
	i, _ := slices.BinarySearchFunc(ends, true, func(end int64, _ bool) int {
		if porcupine.CheckOperationsTimeout(model, f.until(end), within) == porcupine.Illegal {
			return 1
		}
		return -1
	})
	return f.until(ends[min(i, len(ends)-1)])
}

// until is what is known of the history at a moment.
func (f Failure) until(end int64) (out history) {
	for _, o := range f.history {
		switch t := o.Input.(step); {
		case o.Call > end:
			continue
		case o.Return > end && (t.action == read || t.action == flush || t.action == lost):
			continue
		case o.Return > end:
			o.Input, o.Return = step{action: perhaps, value: t.value}, end
		}
		out = append(out, o)
	}
	return out
}

// Write puts the history into dir as a page to look at and as text, as much of it as is wrong by itself, and returns the page's path.
func (f Failure) Write(dir string, within time.Duration) (string, error) {
	h, model := f.shortest(within), sector.ToModel()
	base := filepath.Join(dir, fmt.Sprintf("history-%d-of-%d-sector-%d", time.Now().Unix(), os.Getpid(), f.Sector))
	if err := os.WriteFile(base+".txt", []byte(h.String()), 0o600); err != nil {
		return "", err
	}
	_, info := porcupine.CheckOperationsVerbose(model, h, within)
	return base + ".html", porcupine.VisualizePath(model, info, base+".html")
}

func (h history) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%12s %12s %6s  (microseconds)\n", "call", "return", "client")
	for _, o := range h {
		fmt.Fprintf(&b, "%12d %12d %6d  %s\n", o.Call/1000, o.Return/1000, o.ClientId, o.Input.(step))
	}
	return b.String()
}

// String names the sector and says what is wrong, with the end of its history.
func (f Failure) String() string {
	if f.Unknown {
		return fmt.Sprintf("sector %d: its %d steps were not judged in time", f.Sector, len(f.history))
	}
	h := f.shortest(time.Second)
	return fmt.Sprintf("sector %d: no device that keeps its promises answers so; the first %d steps are enough, and end with\n%s",
		f.Sector, len(h), h[max(0, len(h)-12):])
}
