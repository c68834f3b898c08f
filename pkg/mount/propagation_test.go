package mount

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/detach"
)

// sharedDir is a directory whose mounts are propagated as its propagation says.
func sharedDir(t *testing.T, flags uintptr) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount("shared", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	must(t, unix.Mount("", dir, "", flags, ""))
	return dir
}

// beside starts a process in a mount namespace of its own. script, which may be empty, is run in it first.
func beside(t *testing.T, propagation, script string) {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready")
	c := exec.Command("unshare", "--mount", "--propagation", propagation, "sh", "-c", script+" touch "+ready+"; exec sleep 300")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(t, c.Start())
	t.Cleanup(func() { _ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL); _, _ = c.Process.Wait() })
	eventually(t, func() bool { _, err := os.Stat(ready); return err == nil })
}

// A driver in a container shares kubelet's directory with the machine: what it stages the machine sees as well, and gives up with it.
func TestReleaseWithCopiesInOtherNamespaces(t *testing.T) {
	eachFS(t, func(t *testing.T, m *Mounter, fsType, device string) {
		must(t, m.Format(t.Context(), fsType, device, false))
		dir := sharedDir(t, unix.MS_SHARED)
		elsewhere := t.TempDir()
		beside(t, "unchanged", "")                                                                          // the machine
		beside(t, "slave", "")                                                                              // a container that only follows
		beside(t, "slave", "mount --rbind "+dir+" "+elsewhere+";")                                          // which shows it in another place
		beside(t, "slave", "mount --make-rshared "+dir+"; unshare --mount --propagation slave sleep 300 &") // and has followers itself
		path := filepath.Join(dir, "staging")
		must(t, os.Mkdir(path, 0o700))
		must(t, m.Mount(t.Context(), device, path, fsType, nil))
		held, err := m.MountedAt(device)
		must(t, err)
		if len(held) < 5 {
			t.Fatalf("only %v see it", held)
		}
		must(t, NewReleaser(m).Release(t.Context(), entry(device, path, fsType), detach.DeviceAlive))
	})
}

// A copy that stays when ours goes is a user like any other, and nothing is touched.
func TestReleaseRefusesACopyThatStays(t *testing.T) {
	eachFS(t, func(t *testing.T, m *Mounter, fsType, device string) {
		must(t, m.Format(t.Context(), fsType, device, false))
		dir := sharedDir(t, unix.MS_SHARED)
		path := filepath.Join(dir, "staging")
		must(t, os.Mkdir(path, 0o700))
		must(t, m.Mount(t.Context(), device, path, fsType, nil))
		for name, stays := range map[string]struct{ propagation, script string }{
			"a namespace of its own":      {"private", ""},
			"another place in a follower": {"slave", "mount --bind " + path + " " + t.TempDir() + ";"},
		} {
			t.Run(name, func(t *testing.T) {
				beside(t, stays.propagation, stays.script)
				err := NewReleaser(m).Release(t.Context(), entry(device, path, fsType), detach.DeviceAlive)
				if !errors.Is(err, detach.ErrHeld) || !strings.Contains(err.Error(), "(process ") {
					t.Errorf("%v", err)
				}
				if _, mounted, err := m.At(path); !mounted || err != nil {
					t.Errorf("it was unmounted all the same: %v", err)
				}
			})
		}
		must(t, NewReleaser(m).Release(t.Context(), entry(device, path, fsType), detach.DeviceAlive))
	})
}

// Who is in the way of an unmount by way of a copy is named.
func TestUnmountNamesUsersOfCopies(t *testing.T) {
	eachFS(t, func(t *testing.T, m *Mounter, fsType, device string) {
		must(t, m.Format(t.Context(), fsType, device, false))
		dir := sharedDir(t, unix.MS_SHARED)
		path := filepath.Join(dir, "staging")
		must(t, os.Mkdir(path, 0o700))
		must(t, m.Mount(t.Context(), device, path, fsType, nil))
		beside(t, "unchanged", "cd "+path+";")
		err := NewReleaser(m).Release(t.Context(), entry(device, path, fsType), detach.DeviceAlive)
		if !errors.Is(err, detach.ErrHeld) || !strings.Contains(err.Error(), "process cwd → "+path) || !strings.Contains(err.Error(), ", sleep)") {
			t.Errorf("%v", err)
		}
	})
}
