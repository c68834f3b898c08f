package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/belay-storage/belay/tests/histories"
)

// toldMax bounds how many wrong histories are written: one wrong write has many sectors.
const toldMax = 4

// judge wants every sector's history to be that of a device that keeps its promises, and spoiled ones not to be.
func (l *lab) judge() histories.Result {
	l.Helper()
	all := l.log.Operations()
	found := histories.Check(all, judgeWithin)
	for i, f := range found.Failures {
		if i == toldMax {
			l.Errorf("and %d sectors more", len(found.Failures)-i)
			break
		}
		page, err := f.Write(l.reportDir(), judgeWithin)
		l.Errorf("seed %d: %v\nwritten to %s (%v)", l.seed, f, page, err)
	}
	if len(found.Failures) > 0 {
		l.FailNow()
	}
	for _, how := range []histories.Spoiled{histories.Resurrected, histories.Unflushed} {
		for range spoiledEach {
			wrong, sector, ok := histories.Spoil(all, how, l.random)
			if ok && len(histories.CheckSector(wrong, sector, judgeWithin).Failures) == 0 {
				l.Errorf("seed %d: sector %d was %s, and nothing was found: the history shows nothing", l.seed, sector, how)
			}
			if !ok && how == histories.Resurrected {
				l.Errorf("seed %d: no read in %d operations can be made wrong: the history shows nothing", l.seed, len(all))
			}
			if ok {
				l.kinds["read spoiled, and found: "+string(how)]++
			}
		}
	}
	return found
}

// reportDir is where reports go: BELAY_REPORT_DIR, or where temporary files do.
func (r *rig) reportDir() string {
	if dir := os.Getenv("BELAY_REPORT_DIR"); dir != "" {
		return dir
	}
	return os.TempDir()
}

// reportHistories prints the figures, and adds them to histories.txt where there is a directory for reports.
func (r *rig) reportHistories(t *testing.T, total histories.Result, operations int, kinds map[string]int) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%s, seed %d: %d operations of %d guests; %d histories of sectors with %d steps, the longest %d\n",
		t.Name(), r.seed, operations, labGuests, total.Sectors, total.Steps, total.Longest)
	for _, kind := range sorted(kinds) {
		fmt.Fprintf(&b, "  %6d  %s\n", kinds[kind], kind)
	}
	t.Log(b.String())
	if os.Getenv("BELAY_REPORT_DIR") == "" {
		return
	}
	f, err := os.OpenFile(filepath.Join(r.reportDir(), "histories.txt"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	r.must("report", err)
	defer f.Close()
	_, err = f.WriteString(b.String())
	r.must("report", err)
}
