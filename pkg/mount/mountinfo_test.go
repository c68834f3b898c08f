package mount

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
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

// TestMountsOfAProcessThatHasEnded: one that ends while it is looked at holds nothing any more, and is no reason to refuse a detach.
func TestMountsOfAProcessThatHasEnded(t *testing.T) {
	c := exec.Command("true")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	pid := c.Process.Pid
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil { // a zombie from here on
		t.Fatal(err)
	}
	if _, err := mountTable(strconv.Itoa(pid)); !gone(err) {
		t.Errorf("before its parent has asked: %v", err)
	}
	_ = c.Wait()
	if _, err := mountTable(strconv.Itoa(pid)); !gone(err) {
		t.Errorf("after that: %v", err)
	}
}
