package explorer

import (
	"fmt"
	"slices"
	"testing"
)

// TestRecordingsRepeat: the same scenario and seed give the same calls and the same changes that are not synced, so that the text of a
// state means the same the next time. Another seed gives another order of calls that are made at once.
func TestRecordingsRepeat(t *testing.T) {
	orders := 0
	for _, name := range []string{"disk-lost/3", "deaths/2", "lost-in-turn/3", "sequences-3/lwb"} {
		all := scenarios()
		s := all[slices.IndexFunc(all, func(s scenario) bool { return s.name == name })]
		first := outline(record(t, s, *seedFlag))
		if again := outline(record(t, s, *seedFlag)); again != first {
			t.Errorf("%s: two recordings differ:\n%s\n%s", name, first, again)
		}
		if outline(record(t, s, *seedFlag+1)) != first {
			orders++
		}
	}
	if orders == 0 {
		t.Error("the order of calls does not depend on the seed")
	}
}

func outline(points []point) (text string) {
	for _, p := range points {
		text += fmt.Sprintln(p.before, pendingOf(&p, allDisks))
	}
	return text
}
