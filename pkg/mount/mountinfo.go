package mount

import (
	"fmt"
	"strconv"
	"strings"
)

// parseTable reads what /proc/PID/mountinfo says, in its order. One line is
//
//	ID PARENT MAJOR:MINOR ROOT PATH OPTIONS [TAG…] - FSTYPE SOURCE SUPEROPTIONS
//
// with single blanks between the fields, of which SOURCE may be empty. In names the kernel escapes blanks, tabs, newlines and backslashes, and
// nothing else that some program takes for a blank. A line that is none is an error: what it hides may be what is asked for.
func parseTable(text string) ([]Entry, error) {
	entries := make([]Entry, 0, strings.Count(text, "\n"))
	for line := range strings.Lines(text) {
		e, ok := parseMount(strings.TrimSuffix(line, "\n"))
		if !ok {
			return nil, fmt.Errorf("%.200q is no mount", line)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func parseMount(line string) (e Entry, ok bool) {
	mount, filesystem, _ := strings.Cut(line, " - ")
	of, shown := strings.Split(mount, " "), strings.SplitN(filesystem, " ", 3)
	if len(of) < 6 || len(shown) < 3 || shown[0] == "" {
		return e, false
	}
	e = Entry{
		Path: unescape(of[4]), FSType: shown[0], Source: unescape(shown[1]), Root: unescape(of[3]),
		Options: splitOptions(of[5]), SuperOptions: splitOptions(shown[2]),
	}
	major, minor, _ := strings.Cut(of[2], ":")
	id, err := strconv.ParseUint(of[0], 10, 64)
	a, errMajor := strconv.ParseUint(major, 10, 32)
	b, errMinor := strconv.ParseUint(minor, 10, 32)
	parent, errParent := strconv.ParseUint(of[1], 10, 64)
	e.id, e.parent, e.device = id, parent, blockDevice{uint32(a), uint32(b)}
	e.peers, e.master = propagationOf(of[6:])
	return e, err == nil && errParent == nil && errMajor == nil && errMinor == nil && strings.HasPrefix(e.Path, "/")
}

// groupNumber is the group of that number; 0 where it is none, which propagates nothing.
func groupNumber(s string) group {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return group(n)
}

// splitOptions splits at commas that are not within double quotes.
func splitOptions(s string) []string {
	quoted := false
	return strings.FieldsFunc(s, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return r == ',' && !quoted
	})
}
