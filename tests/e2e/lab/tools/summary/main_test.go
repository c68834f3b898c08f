package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const skips = `
# This machine
# cannot.
grow.*ext4
shrink

# Nothing here.
`

const first = `<testsuites><testsuite>
<testcase name="[SynchronizedBeforeSuite] " status="passed" time="1"></testcase>
<testcase name="[It] External Storage [Driver: d] [Testpattern: Dynamic PV (ext4)] volumes should store [Driver: d, Slow]" status="passed" time="2.5"></testcase>
<testcase name="[It] External Storage [Driver: d] [Testpattern: x] flaky [Driver: d]" status="failed" time="1"><failure message="m" type="failed">f</failure></testcase>
<testcase name="[It] External Storage [Driver: d] [Testpattern: x] broken [Driver: d]" status="timedout" time="1"></testcase>
<testcase name="[It] External Storage [Driver: d] [Testpattern: x] clone [Driver: d]" status="skipped" time="0"><skipped message="skipped - no &#34;clones&#34;"></skipped></testcase>
<testcase name="[It] External Storage [Driver: d] grow [Testpattern: ext4] [Driver: d]" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[It] External Storage [Driver: d] [Testpattern: x] later [Driver: d]" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[It] External Storage [Driver: d] [Testpattern: x] never [Driver: d]" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[It] [sig-storage] CSI Mock of somebody else" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
</testsuite></testsuites>`

const second = `<testsuites><testsuite>
<testcase name="[It] External Storage [Driver: d] [Testpattern: x] later [Driver: d]" status="passed" time="3"></testcase>
<testcase name="[It] External Storage [Driver: d] [Testpattern: x] flaky [Driver: d]" status="passed" time="1"></testcase>
<testcase name="[It] External Storage [Driver: d] [Testpattern: x] broken [Driver: d]" status="skipped" time="1"><skipped message="skipped"></skipped></testcase>
</testsuite></testsuites>`

const want = `T: 2 passed, 2 failed, 2 skipped with a reason, 1 not selected

failed: 2
   1.0 s [Testpattern: x] broken
   1.0 s [Testpattern: x] flaky

passed: 2
   2.5 s [Testpattern: Dynamic PV (ext4)] volumes should store
   3.0 s [Testpattern: x] later

skipped, left out: This machine cannot.: 1
         grow [Testpattern: ext4]

skipped, no "clones": 1
         [Testpattern: x] clone
`

func TestSummary(t *testing.T) {
	dir := t.TempDir()
	names := []string{filepath.Join(dir, "skips"), filepath.Join(dir, "1.xml"), filepath.Join(dir, "2.xml")}
	for i, text := range []string{skips, first, second} {
		if err := os.WriteFile(names[i], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	if err := run(&out, "T", names[:1], false, names[1:]); err != nil || out.String() != want {
		t.Errorf("%v\n%s", err, out.String())
	}
	out.Reset()
	if err := run(&out, "T", names[:1], true, nil); err != nil || out.String() != "grow.*ext4\nshrink\n" {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestSkipsWantReasons(t *testing.T) {
	for _, text := range []string{"pattern", "# reason\n\npattern", "# reason\n("} {
		if _, err := parseSkips(text); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}
