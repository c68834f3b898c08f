package vfs_test

import (
	"testing"

	"github.com/belay-storage/belay/pkg/vfs"
)

// TestNumbersBeginAnew: who makes the same file systems with numbers of his own finds the same devices and mounts, whatever others make.
func TestNumbersBeginAnew(t *testing.T) {
	one, two := numbered(t), numbered(t)
	if one != two {
		t.Fatalf("device and mounts %v, and then %v", one, two)
	}
	if one[0] == one[3] || one[1] == one[2] || one[1] == one[4] || one[2] == one[4] {
		t.Fatalf("two file systems look like one: %v", one)
	}
}

// numbered are device and mount of a file system and the mount that it has after a power cut, and the device and mount of another one.
func numbered(t *testing.T) [5]uint64 {
	t.Helper()
	var n vfs.Numbers
	vfs.NewMem()
	m := n.NewMem()
	after, other := m.CrashClone(nil), n.NewMem()
	return [5]uint64{stat(t, m).Device, stat(t, m).Mount, stat(t, after).Mount, stat(t, other).Device, stat(t, other).Mount}
}

func stat(t *testing.T, m *vfs.Mem) vfs.Info {
	t.Helper()
	info, err := m.Stat("/")
	if err != nil {
		t.Fatal(err)
	}
	return info
}
