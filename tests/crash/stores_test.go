package crash

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/tests/orchestrator"
)

// onDisks starts a server on three stores that have a disk each.
func onDisks(t *testing.T, size int64, args ...string) (*rig, []*disk) {
	t.Helper()
	var disks []*disk
	var stores []string
	for range 3 {
		d := newDisk(t, size)
		disks, stores = append(disks, d), append(stores, d.store)
	}
	r := newMachine(t, stores...)
	r.Args = args
	r.start()
	return r, disks
}

// load is the oracle's load, until stop.
type load struct {
	*subject
	stop chan struct{}
	done chan error
}

func (s *subject) begin() *load {
	l := &load{s, make(chan struct{}), make(chan error, 1)}
	go func() { l.done <- s.oracle.run(s.Target, l.stop) }()
	return l
}

// goesOn wants records synced that nobody had begun before.
func (l *load) goesOn() {
	l.Helper()
	const more = 6 // three writers had one under way at most
	least := l.oracle.synced.Load() + more
	l.until("more synced records", func() (bool, error) { return l.oracle.synced.Load() >= least, nil })
}

// end wants that no write failed.
func (l *load) end() {
	l.Helper()
	close(l.stop)
	l.must("load", <-l.done)
}

func (r *rig) until(what string, done func() (bool, error)) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), callWithin)
	defer cancel()
	r.must(what, orchestrator.Until(ctx, what, done))
}

func (s *subject) becomes(state engine.State) {
	s.Helper()
	s.until(fmt.Sprintf("volume %s becomes %s", s.ID, state), func() (bool, error) { return s.volume(s.Volume).State == state, nil })
}

// replica is what `belay why` says of the volume's replica at a place.
func (s *subject) replica(place string) engine.Replica {
	s.Helper()
	var report detach.Report
	s.do("why", func(ctx context.Context) error { return s.AskJSON(ctx, &report, "why", s.ID) })
	for _, r := range report.Volume.Replicas {
		if r.Place == place {
			return r
		}
	}
	s.Fatalf("belay why %s: nothing of %s", s.ID, place)
	return engine.Replica{}
}

// leavesDegraded detaches a volume of which two replicas are in sync.
func (s *subject) leavesDegraded() {
	s.Helper()
	s.do("detach", s.Detach)
	proof := s.newest(s.Volume, receipt.Degraded)
	insync := 0
	for _, e := range proof.Evidence {
		if e.State == engine.InSync && e.Durable && e.Digest.Equal(proof.Expected) {
			insync++
		}
	}
	if insync != 2 {
		s.Fatalf("the receipt says that %d replicas hold the content, want 2 of 3", insync)
	}
}

// isWhole checks and detaches a volume all of whose replicas are in sync again.
func (s *subject) isWhole() {
	s.Helper()
	s.becomes(engine.Healthy)
	s.must("what was written", s.oracle.check(s.Target))
	s.do("detach", s.Detach)
	s.newest(s.Volume, receipt.Clean)
	s.verify(s.Volume)
	s.identical(s.Volume, s.fstype)
	s.do("delete", s.Delete)
	s.settled()
}

// TestStoreVanishesUnderLoad: a disk fails. The volume goes on with two of three, and is rebuilt once the disk is mounted again,
// under load as well; let go of meanwhile, its receipt says that it was degraded.
func TestStoreVanishesUnderLoad(t *testing.T) {
	t.Parallel()
	r, disks := onDisks(t, 512*mib)
	s := r.subject("vanish", "ext4", 64*mib)
	s.do("attach", s.Attach)
	l := s.begin()
	l.goesOn()
	disks[1].pull()
	s.becomes(engine.Degraded)
	l.goesOn()
	if gone := s.replica(disks[1].store); gone.State == engine.InSync || gone.Reason == "" {
		t.Errorf("the replica on the disk that failed: %+v", gone)
	}
	s.plugIn(disks[1])
	l.goesOn()
	disks[2].pull()
	s.becomes(engine.Degraded)
	l.goesOn()
	l.end()
	s.leavesDegraded()

	s.do("attach with two of three", s.Attach)
	l = s.begin()
	l.goesOn()
	s.plugIn(disks[2])
	l.goesOn()
	l.end()
	s.isWhole()
}

// TestTwoDisksFailUnderLoad: without a majority nothing is acknowledged and nothing fails: writes wait, the detach is refused, and
// everything goes on once the disks are back.
func TestTwoDisksFailUnderLoad(t *testing.T) {
	t.Parallel()
	r, disks := onDisks(t, 512*mib)
	s := r.subject("two", "ext4", 64*mib)
	s.do("attach", s.Attach)
	l := s.begin()
	l.goesOn()
	disks[0].pull()
	disks[1].pull()
	s.becomes(engine.Unavailable)
	r.refused("controller-unpublish", s.ControllerUnpublish(t.Context()), codes.Unavailable, s.ID)
	for _, d := range disks[:2] {
		s.until("the disk can be unmounted", func() (bool, error) { return d.unplug() == nil, nil })
		d.mount()
	}
	s.becomes(engine.Healthy)
	l.goesOn()
	l.end()
	s.isWhole()
}

// plugIn mounts a disk that failed again, as another device.
func (s *subject) plugIn(d *disk) {
	s.Helper()
	s.until("the disk can be unmounted", func() (bool, error) { return d.unplug() == nil, nil })
	d.mount()
	s.becomes(engine.Healthy)
}

// TestDiskFillsUnderLoad: one of three disks is full. The volume goes on, and comes back whole when there is room.
func TestDiskFillsUnderLoad(t *testing.T) {
	t.Parallel()
	r, disks := onDisks(t, 256*mib)
	s := r.subject("fill", "ext4", 64*mib)
	s.do("attach", s.Attach)
	l := s.begin()
	l.goesOn()
	free := disks[2].fill()
	s.becomes(engine.Degraded)
	l.goesOn()
	l.end()
	// Tried again and again, it is being rebuilt for a moment.
	s.until("the full disk is named", func() (bool, error) {
		return strings.Contains(s.replica(disks[2].store).Reason, "no space left"), nil
	})
	s.leavesDegraded()
	free()
	s.do("attach", s.Attach)
	s.isWhole()
}

// TestCreateOnFullDisk: where a replica cannot be made, none is, whether the room was known to be too small or ran out.
func TestCreateOnFullDisk(t *testing.T) {
	t.Parallel()
	r, disks := onDisks(t, 64*mib, "--overcommit", "1000")
	free := disks[1].fill()
	r.refusesToCreate("full", codes.ResourceExhausted)
	free()
	rest := disks[1].fillBut(20 * kib) // enough for what is promised, not for what is made
	r.refusesToCreate("nearly-full", codes.ResourceExhausted)
	rest()
	v := r.create(orchestrator.Spec{Name: "nearly-full", Size: 16 * mib, FSType: "ext4"})
	r.do("delete", v.Delete)
}

// refusesToCreate wants the code, the name in the message, and nothing left behind.
func (r *rig) refusesToCreate(name string, want codes.Code) {
	r.Helper()
	_, err := r.Create(r.Context(), orchestrator.Spec{Name: name, Size: 16 * mib, FSType: "ext4"})
	if status.Code(err) != want || !strings.Contains(err.Error(), name) {
		r.Errorf("create %s: %v, want %s", name, err, want)
	}
	for _, s := range r.Stores {
		for _, dir := range []string{"volumes", "incoming", "trash"} {
			left, err := os.ReadDir(filepath.Join(s, dir))
			if err != nil || len(left) > 0 {
				r.Errorf("store %s: left in %s: %v %v", s, dir, left, err)
			}
		}
	}
}

// TestReadOnlyStore: a store that cannot be written is away, and says why. It is no reason to stop.
func TestReadOnlyStore(t *testing.T) {
	t.Parallel()
	r, disks := onDisks(t, 512*mib)
	s := r.subject("readonly", "ext4", 64*mib)
	r.must("stop", r.Stop())
	disks[0].remount("ro")
	r.start()
	_, err := r.Create(t.Context(), orchestrator.Spec{Name: "another", Size: 64 * mib, FSType: "ext4"})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), disks[0].store) || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("create with a read-only store: %v", err)
	}
	s.do("attach with two of three", s.Attach)
	l := s.begin()
	l.goesOn()
	l.end()
	s.leavesDegraded()
	disks[0].remount("rw")
	s.do("attach", s.Attach)
	s.isWhole()
}

// TestDamagedRecord: a replica whose record is damaged is unknown. It is asked nothing, and nobody resets it; attached, the
// majority gives it theirs.
func TestDamagedRecord(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.subject("damaged", "ext4", 64*mib)
	s.do("attach", s.Attach)
	l := s.begin()
	l.goesOn()
	l.end()
	s.do("detach", s.Detach)
	meta := filepath.Join(r.Stores[1], "volumes", s.ID, "meta")
	damaged := damage(t, meta)
	for range 2 { // looked at again, and by the next server
		if bad := s.replica(r.Stores[1]); bad.State != engine.Unknown || bad.Reason == "" {
			t.Errorf("the replica with a damaged record: %+v", bad)
		}
		if v := s.volume(s.Volume); v.State != engine.Degraded {
			t.Errorf("volume %s is %s (%s)", s.ID, v.State, v.Reason)
		}
		r.kill()
		r.start()
	}
	if now, err := os.ReadFile(meta); err != nil || !bytes.Equal(now, damaged) {
		t.Errorf("somebody wrote the damaged record (%v)", err)
	}
	s.do("attach", s.Attach)
	s.isWhole()
}

// damage overwrites both record slots, and returns the whole file.
func damage(t *testing.T, meta string) []byte {
	t.Helper()
	const slots, size = 0x2000, 0x2000
	f, err := os.OpenFile(meta, os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xA5}, size), slots); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(meta)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestSecondServer: two servers on the same stores. The second refuses, says who runs, and the first never notices.
func TestSecondServer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.subject("second", "ext4", 64*mib)
	s.do("attach", s.Attach)
	l := s.begin()
	pid := fmt.Sprintf("pid=%d", r.PID())
	other := filepath.Join(r.Dir, "other")
	sockets := []string{"--endpoint", "unix://" + other + "/csi.sock", "--admin-socket", other + "/admin.sock"}
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"the same command line":             {nil, pid},
		"other sockets":                     {sockets, pid},
		"another installation":              {append(sockets, "--state", other+"/state"), "another installation"},
		"another installation, our sockets": {[]string{"--state", other + "/state"}, "another installation"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), callWithin)
		a, err := r.Machine.Run(ctx, append(r.Arguments(), c.args...)...)
		cancel()
		if err != nil || a.Code != 1 || !strings.Contains(a.Stderr, c.says) || !strings.Contains(a.Stderr, r.Stores[0]) {
			t.Errorf("%s: exit code %d, %v, want 1 and %q: %s", name, a.Code, err, c.says, a.Stderr)
		}
	}
	l.goesOn()
	l.end()
	s.isWhole()
}

// TestForeignDirectories: a directory that is somebody else's is refused by name, and left as it is.
func TestForeignDirectories(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must("stop", r.Stop())
	photos := filepath.Join(r.Dir, "photos")
	r.must("mkdir", os.Mkdir(photos, 0o700))
	r.must("write", os.WriteFile(filepath.Join(photos, "1.jpg"), []byte("a photo"), 0o600))
	for name, c := range map[string]struct{ store, state, says string }{
		"store of another installation": {r.Stores[2], filepath.Join(r.Dir, "state-2"), "another installation"},
		"directory with other things":   {photos, r.State(), "photos"},
	} {
		before := tree(t, c.store)
		a, err := r.Machine.Run(t.Context(), append(r.Arguments(), "--store", c.store, "--state", c.state)...)
		if name == "store of another installation" {
			a, err = r.Machine.Run(t.Context(), "serve", "--endpoint", "unix://"+r.Dir+"/x.sock", "--admin-socket", r.Dir+"/y.sock", "--nodeid", orchestrator.NodeID,
				"--state", c.state, "--store", c.store)
		}
		if err != nil || a.Code != 1 || !strings.Contains(a.Stderr, c.says) || !strings.Contains(a.Stderr, c.store) {
			t.Errorf("%s: exit code %d, %v: %s", name, a.Code, err, a.Stderr)
		}
		if after := tree(t, c.store); after != before {
			t.Errorf("%s: was\n%s\nis\n%s", name, before, after)
		}
	}
	r.start()
}

// tree is everything below a directory: names, sizes, times.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil {
			fmt.Fprintln(&b, path, info.Mode(), info.Size(), info.ModTime())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
