package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMountsOfOthers: what others mount, under whatever name and from nothing at all, hides no mount of ours.
func TestMountsOfOthers(t *testing.T) {
	root(t)
	dir := t.TempDir()
	for _, name := range []string{"no-source", "carriage\rreturn", "no-break\u00a0space", "next\u0085line", "a - b", "hash#", `back\040slash`, "tab\tand\nnewline", "\xff"} {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		source := name
		if name == "no-source" {
			source = ""
		}
		if err := unix.Mount(source, path, "tmpfs", 0, "size=4k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(path, 0) })
		e, mounted, err := newMounter(t).At(path)
		if err != nil || !mounted || e.FSType != "tmpfs" || e.Source != source || !slices.Contains(e.SuperOptions, "size=4k") {
			t.Errorf("%q: %+v, %t, %v", name, e, mounted, err)
		}
	}
}

// kernelEscapes is how the kernel writes a name into mountinfo.
var kernelEscapes = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)

// FuzzMountNames: whatever names a mount has, it is read as what it is, and so is the next one.
func FuzzMountNames(f *testing.F) {
	f.Add("/", "/mnt/a b", "/dev/loop7", "rw,nosuid", "shared:1", uint32(7), uint32(0))
	f.Add("/", "/mnt/\r", "", "ro", "", uint32(0), uint32(39))
	f.Add("net:[4026531840]", "/run/\u00a0\u0085", "- -", "rw", "master:2 propagate_from:3", ^uint32(0), uint32(1))
	f.Fuzz(func(t *testing.T, root, path, source, options, tags string, major, minor uint32) {
		if strings.ContainsRune(root+path+source, 0) || strings.ContainsAny(options+tags, " \t\n\\\x00-") || options == "" {
			return
		}
		path = "/" + path
		if tags != "" {
			tags += " "
		}
		line := fmt.Sprintf("36 35 %d:%d %s %s %s %s- ext4 %s rw,%s\n", major, minor,
			kernelEscapes.Replace("/"+root), kernelEscapes.Replace(path), options, tags, kernelEscapes.Replace(source), options)
		all, err := parseTable(line + "37 35 0:5 / /next rw - tmpfs  rw\n")
		if err != nil || len(all) != 2 {
			t.Fatalf("%q: %+v, %v", line, all, err)
		}
		e, next := all[0], all[1]
		if e.Root != "/"+root || e.Path != path || e.Source != source || e.FSType != "ext4" || e.id != 36 || e.device != (blockDevice{major, minor}) {
			t.Errorf("%q reads as %+v", line, e)
		}
		if next.Path != "/next" || next.Source != "" || next.FSType != "tmpfs" {
			t.Errorf("after %q: %+v", line, next)
		}
	})
}

// FuzzMountTable: of a table of any text each line is a mount, or it is refused.
func FuzzMountTable(f *testing.F) {
	own, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(own))
	f.Add("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n")
	f.Add("36 35 98:0 / /mnt - rw\n")
	f.Add("\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseTable(text)
		if err == nil && len(all) != len(slices.Collect(strings.Lines(text))) {
			t.Errorf("%q: %d mounts", text, len(all))
		}
		for _, e := range all {
			if !strings.HasPrefix(e.Path, "/") || e.FSType == "" {
				t.Errorf("%q: %+v", text, e)
			}
		}
	})
}

// FuzzUnescape undoes what the kernel did, and makes nothing longer.
func FuzzUnescape(f *testing.F) {
	f.Add(`/a\040b`)
	f.Add(`\`)
	f.Add("a b\\\t\n")
	f.Fuzz(func(t *testing.T, s string) {
		if got := unescape(s); len(got) > len(s) {
			t.Errorf("%q grew to %q", s, got)
		}
		if got := unescape(kernelEscapes.Replace(s)); got != s {
			t.Errorf("%q came back as %q", s, got)
		}
	})
}
