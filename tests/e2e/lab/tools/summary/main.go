// Command summary says what a run of the storage tests of Kubernetes came to: which passed, which failed, and why the others were skipped.
//
//	summary -title TEXT -skips FILE JUNIT...
//
// FILE has the patterns of tests that were left out on purpose, one to a line, each below a comment that says why.
package main

import (
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	title := flag.String("title", "storage tests", "the first words")
	var skips []string
	flag.Func("skips", "file of patterns that were left out, with reasons; may be repeated", func(name string) error {
		skips = append(skips, name)
		return nil
	})
	patterns := flag.Bool("patterns", false, "print the patterns of those files, and nothing else")
	flag.Parse()
	if err := run(os.Stdout, *title, skips, *patterns, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "summary:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, title string, skips []string, only bool, reports []string) error {
	leftOut, err := readSkips(skips)
	if err != nil {
		return err
	}
	if only {
		for _, s := range leftOut {
			fmt.Fprintln(out, s.pattern)
		}
		return nil
	}
	s := newSummary(leftOut)
	for _, name := range reports {
		if err := s.read(name); err != nil {
			return err
		}
	}
	s.write(out, title)
	return nil
}

// skip is a pattern of tests that are left out, and why.
type skip struct {
	pattern *regexp.Regexp
	reason  string
}

func readSkips(names []string) (all []skip, err error) {
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		some, err := parseSkips(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, some...)
	}
	return all, nil
}

// parseSkips: a pattern has the reason of the comment lines above it; an empty line ends a reason.
func parseSkips(text string) (all []skip, err error) {
	reason, fresh := "", false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		comment, isComment := strings.CutPrefix(line, "#")
		switch {
		case line == "":
			reason, fresh = "", false
		case isComment && fresh:
			reason += " " + strings.TrimSpace(comment)
		case isComment:
			reason, fresh = strings.TrimSpace(comment), true
		case reason == "":
			return nil, fmt.Errorf("the pattern %q has no reason: a comment above it", line)
		default:
			pattern, err := regexp.Compile(line)
			if err != nil {
				return nil, err
			}
			all, fresh = append(all, skip{pattern, reason}), false
		}
	}
	return all, nil
}

// result is a test of a report.
type result struct {
	Name    string  `xml:"name,attr"`
	Status  string  `xml:"status,attr"`
	Seconds float64 `xml:"time,attr"`
	Skipped *struct {
		Message string `xml:"message,attr"`
	} `xml:"skipped"`
}

// summary is what is known of every test, by name. What failed in one of the reports has failed.
type summary struct {
	leftOut                  []skip
	passed, failed, reasoned map[string]string // what stands before the name, or the reason
	unselected               map[string]bool
}

func newSummary(leftOut []skip) *summary {
	return &summary{leftOut, map[string]string{}, map[string]string{}, map[string]string{}, map[string]bool{}}
}

func (s *summary) read(name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var report struct {
		Results []result `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(text, &report); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, r := range report.Results {
		s.add(r)
	}
	return nil
}

func (s *summary) add(r result) {
	name, ours := testName(r.Name)
	switch {
	case r.Status == "skipped" && ours:
		s.skipped(name, r)
	case r.Status == "passed" && ours && s.failed[name] == "":
		s.passed[name] = fmt.Sprintf("%6.1f s", r.Seconds)
	case r.Status != "skipped" && r.Status != "passed": // what the suite does before and after counts too
		delete(s.passed, name)
		s.failed[name] = fmt.Sprintf("%6.1f s", r.Seconds)
	}
}

// skipped sorts out why: the test said so itself, the list did, or the flags of this run.
func (s *summary) skipped(name string, r result) {
	if r.Skipped != nil {
		if _, reason, said := strings.Cut(r.Skipped.Message, "skipped - "); said {
			s.reasoned[name] = reason
			return
		}
	}
	for _, k := range s.leftOut {
		if k.pattern.MatchString(r.Name) {
			s.reasoned[name] = "left out: " + k.reason
			return
		}
	}
	s.unselected[name] = true
}

var labels = regexp.MustCompile(`\s*\[Driver: [^\]]*\]|\[It\] External Storage|\s+\[[^\[\]]*\]$`)

// testName is the name without what all have in common, and whether it is a test of the driver at all.
func testName(name string) (string, bool) {
	ours := strings.Contains(name, "External Storage")
	return strings.TrimSpace(labels.ReplaceAllString(name, "")), ours
}

// settle: what ran in one of the reports is not skipped, and what was skipped with a reason was selected.
func (s *summary) settle() {
	ran := func(name string) bool { return s.passed[name] != "" || s.failed[name] != "" }
	maps.DeleteFunc(s.reasoned, func(name, _ string) bool { return ran(name) })
	maps.DeleteFunc(s.unselected, func(name string, _ bool) bool { return ran(name) || s.reasoned[name] != "" })
}

func (s *summary) write(out io.Writer, title string) {
	s.settle()
	fmt.Fprintf(out, "%s: %d passed, %d failed, %d skipped with a reason, %d not selected\n",
		title, len(s.passed), len(s.failed), len(s.reasoned), len(s.unselected))
	list(out, "failed", s.failed)
	list(out, "passed", s.passed)
	s.reasons(out)
}

// list writes tests in order, each with what stands before it.
func list(out io.Writer, what string, tests map[string]string) {
	fmt.Fprintf(out, "\n%s: %d\n", what, len(tests))
	for _, name := range sorted(tests) {
		fmt.Fprintln(out, tests[name], name)
	}
}

// reasons writes the skipped tests by the reason.
func (s *summary) reasons(out io.Writer) {
	by := map[string][]string{}
	for _, name := range sorted(s.reasoned) {
		by[s.reasoned[name]] = append(by[s.reasoned[name]], name)
	}
	for _, reason := range sorted(by) {
		fmt.Fprintf(out, "\nskipped, %s: %d\n", reason, len(by[reason]))
		for _, name := range by[reason] {
			fmt.Fprintln(out, "        ", name)
		}
	}
}

func sorted[V any](of map[string]V) []string {
	keys := make([]string, 0, len(of))
	for k := range of {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
