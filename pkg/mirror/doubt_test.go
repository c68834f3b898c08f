package mirror

import (
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// TestDoubt: who attaches cold behind a writer that died puts the filesystem in doubt; who goes on for a guest that is alive does not.
func TestDoubt(t *testing.T) {
	l := newLab(t, vfs.NewMem(), "/", 3, 64*volume.MiB)
	format := engine.Format{Stage: engine.Formatted, FSType: "xfs"}
	open := func(warm *Warm) engine.Doubt {
		t.Helper()
		s, err := Open(t.Context(), OpenConfig{ID: testID, Stores: l.dirs, Purpose: ForDevice, Holder: "test", Log: l.log, Warm: warm})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close() // unsealed: the writer died
		if attributesOf(s.Config()).Format == (engine.Format{}) {
			if err := s.Update(formatTo(format)); err != nil {
				t.Fatal(err)
			}
		}
		return attributesOf(s.Config()).Format.Doubt
	}
	if d := open(nil); d != engine.NoDoubt {
		t.Errorf("a new volume: %q", d)
	}
	if d := open(&Warm{}); d != engine.NoDoubt {
		t.Errorf("taken over warm: %q", d)
	}
	for range 2 {
		if d := open(nil); d != engine.Unchecked {
			t.Errorf("after a writer that died: %q", d)
		}
	}
	if d := open(&Warm{}); d != engine.Unchecked {
		t.Errorf("taken over warm before it was checked: %q", d)
	}
}
