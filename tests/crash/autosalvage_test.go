package crash

import (
	"context"
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/tests/orchestrator"
)

// identities are who holds the volume's copies.
func (s *subject) identities() (out []engine.ReplicaID) {
	s.Helper()
	for _, r := range s.volume(s.Volume).Replicas {
		out = append(out, r.ID)
	}
	slices.Sort(out)
	return out
}

// TestAllStoresVanishAndComeBack is Longhorn's test_salvage_auto_crash_all_replicas where nothing was lost but sight of the stores: all of
// them vanish under load, and so does the engine. The workload waits, and goes on when they are back, in another order.
func TestAllStoresVanishAndComeBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, fstype := range []string{"ext4", "xfs"} {
		s := r.subject("blink-"+fstype, fstype, 320*mib)
		s.do("attach", s.Attach)
		l := s.begin()
		l.goesOn()
		before := s.identities()
		for _, dir := range r.Stores {
			r.must("store away", os.Rename(dir, dir+".away"))
		}
		s.signal(syscall.SIGKILL)
		s.becomes(engine.Unavailable)
		order := slices.Clone(r.Stores)
		r.random.Shuffle(len(order), func(i, k int) { order[i], order[k] = order[k], order[i] })
		for _, dir := range order {
			r.must("store back", os.Rename(dir+".away", dir))
		}
		l.goesOn()
		l.end()
		if after := s.identities(); !slices.Equal(after, before) {
			t.Errorf("replicas %v, before %v", after, before)
		}
		s.isWhole()
	}
}

// TestAutosalvageOfAllStores is the same where the disks failed, so that what was acknowledged and not flushed may be gone. The device is given
// up, the workload sees an error and nothing wrong, and the volume comes up by itself from the same stores with everything that was synced.
func TestAutosalvageOfAllStores(t *testing.T) {
	t.Parallel()
	r, disks := onDisks(t, 512*mib)
	r.failsAndComesBack(r.subject("all", "ext4", 64*mib), disks)
}

// TestAutosalvageWithASingleLocalStore is Longhorn's test_autosalvage_with_data_locality_enabled: the only copy is local, and comes back.
func TestAutosalvageWithASingleLocalStore(t *testing.T) {
	t.Parallel()
	d := newDisk(t, 512*mib)
	r := newMachine(t, d.store)
	r.start()
	s := &subject{rig: r, fstype: "xfs", oracle: newOracle(r.random.Uint64())}
	s.Volume = r.create(orchestrator.Spec{Name: "local", Size: 320 * mib, FSType: "xfs", Parameters: map[string]string{"replicas": "1"}})
	r.failsAndComesBack(s, []*disk{d})
}

func (r *rig) failsAndComesBack(s *subject, disks []*disk) {
	r.Helper()
	for range 3 {
		s.do("attach", s.Attach)
		before := s.identities()
		l := s.begin()
		l.goesOn()
		for _, d := range disks {
			d.pull()
		}
		s.becomes(engine.Unavailable)
		r.random.Shuffle(len(disks), func(i, k int) { disks[i], disks[k] = disks[k], disks[i] })
		for _, d := range disks {
			s.until("the disk can be unmounted", func() (bool, error) { return d.unplug() == nil, nil })
			d.mount()
		}
		if err := <-l.done; err == nil || errors.Is(err, context.Canceled) {
			r.Fatal("the load went on though what it was told may be gone")
		}
		s.finish()
		s.newest(s.Volume, receipt.Fenced)
		s.do("controller-unpublish", s.ControllerUnpublish)
		if after := s.identities(); !slices.Equal(after, before) {
			r.Errorf("replicas %v, before %v", after, before)
		}
		s.do("attach again", s.Attach)
		s.becomes(engine.Healthy)
		s.must("what was synced", s.oracle.check(s.Target))
		s.do("detach", s.Detach)
		s.newest(s.Volume, receipt.Clean)
		s.verify(s.Volume)
		s.identical(s.Volume, s.fstype)
	}
	s.do("delete", s.Delete)
	s.settled()
}
