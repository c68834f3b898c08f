package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/engine"
	hist "github.com/belay-storage/belay/pkg/history"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/tests/orchestrator"
)

// history is what the program says became of the volume.
func (r *rig) history(v *orchestrator.Volume) (h hist.History) {
	r.Helper()
	r.do("history of "+v.ID, func(ctx context.Context) error { return r.AskJSON(ctx, &h, "history", v.ID) })
	return h
}

// tells wants these kinds in the history from its entry on, in this order, among others.
func (r *rig) tells(v *orchestrator.Volume, from int, kinds ...hist.Kind) (found []hist.Entry) {
	r.Helper()
	all := r.history(v)
	rest := all.Entries[from:]
	for _, k := range kinds {
		at := slices.IndexFunc(rest, func(e hist.Entry) bool { return e.Kind == k })
		if at < 0 {
			r.Fatalf("volume %s: no %q in its place of %v in its history: %v", v.ID, k, kinds, all.Entries)
		}
		found = append(found, rest[at])
		rest = rest[at+1:]
	}
	return found
}

// TestUncleanIsChecked: server, host and engine die at once under load. Who stages the volume then knows: the filesystem's journal is
// replayed and its own check run before it is mounted, and the volume's history tells it. What was synced is there.
func TestUncleanIsChecked(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for i, fstype := range []string{"ext4", "xfs"} {
		s := r.subject(fmt.Sprintf("unclean-%d", i), fstype, 320*mib)
		s.do("attach", s.Attach)
		s.tells(s.Volume, 0, hist.Created, hist.Published, hist.Attached)
		s.keep()
		s.underLoad(func() {
			time.Sleep(time.Duration(r.random.Int64N(int64(killWithin))))
			s.must("kill", s.KillAll())
		})
		s.start()
		before := len(s.history(s.Volume).Entries)
		s.eventually("unpublish", s.Unpublish)
		s.eventually("stage", s.Stage) // kubelet does no more than to ask again
		found := s.tells(s.Volume, before, hist.Fenced, hist.Detached, hist.Unclean, hist.Checked, hist.Attached)
		if check := found[3]; !strings.HasPrefix(check.Text, fstype+" is consistent; before: its") || check.Took <= 0 || check.Epoch != found[2].Epoch {
			t.Errorf("%s: the check is told as %+v", fstype, check)
		}
		s.clears()
		s.do("publish", s.Publish)
		s.must("what was synced", errors.Join(s.oracle.check(s.Target), s.keptIsThere()))
		s.do("detach", s.Detach)
		s.newest(s.Volume, receipt.Clean)
		s.identical(s.Volume, s.fstype)
		s.do("delete", s.Delete)
		s.settled()
	}
}

// clears wants nothing to be held against the filesystem, and `belay why` to say what happened.
func (s *subject) clears() {
	s.Helper()
	if d := s.volume(s.Volume).Format.Doubt; d != engine.NoDoubt {
		s.Fatalf("volume %s is mounted and its filesystem %s", s.ID, d)
	}
	var why admin.Why
	s.do("why", func(ctx context.Context) error { return s.AskJSON(ctx, &why, "why", s.ID) })
	told := slices.ContainsFunc(why.History, func(e hist.Entry) bool { return e.Kind == hist.Checked })
	if text := why.Text(); !told || !strings.Contains(text, string(hist.Unclean)) || strings.Contains(text, "filesystem") && strings.Contains(text, "not checked since") {
		s.Fatalf("belay why does not tell of the check:\n%s", text)
	}
}

// TestHistoryTellsOfEngines: an engine that dies and is followed, and one that is exchanged, are in the volume's history, once, also
// where the server was dead meanwhile and hears of it later, and then again.
func TestHistoryTellsOfEngines(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.subject("followed", "ext4", 128*mib)
	s.do("attach", s.Attach)
	s.kill()
	s.must("kill", s.KillEngine(s.Context(), s.Volume))
	s.must("the next engine", s.serving())
	s.start()
	next := filepath.Join(s.Dir, "next")
	s.must("another program", orchestrator.CopyProgram(next, program))
	a, err := s.Ask(s.Context(), "upgrade", s.ID, "--to", next)
	if err != nil || a.Code != 0 {
		t.Fatalf("upgrade: %v, exit code %d: %s%s", err, a.Code, a.Stderr, a.Stdout)
	}
	engines := func() (kinds []hist.Kind) {
		for _, e := range s.history(s.Volume).Entries {
			if slices.Contains([]hist.Kind{hist.EngineDied, hist.TakenOver, hist.Upgraded}, e.Kind) {
				kinds = append(kinds, e.Kind)
				if e.Kind != hist.EngineDied && e.Took <= 0 {
					t.Errorf("without a pause: %v", e)
				}
			}
		}
		return kinds
	}
	want := []hist.Kind{hist.EngineDied, hist.TakenOver, hist.Upgraded}
	s.do("history", func(ctx context.Context) error {
		return orchestrator.Until(ctx, "the upgrade in the history", func() (bool, error) { return len(engines()) >= len(want), nil })
	})
	for range 2 {
		s.kill()
		s.start()
	}
	s.do("detach", s.Detach)
	if got := engines(); !slices.Equal(got, want) {
		t.Errorf("the history tells %v, want %v", got, want)
	}
	s.do("delete", s.Delete)
	s.settled()
}

// raw is the same volume as its operator attaches it to look at its device.
func (s *subject) raw() *orchestrator.Volume {
	return s.Machine.Volume(s.ID, orchestrator.Spec{Block: true})
}

// debug has debugfs write to the device.
func (s *subject) debug(device, command string) {
	s.Helper()
	out, err := exec.Command("debugfs", "-w", "-R", command, device).CombinedOutput()
	if err == nil {
		err = exec.Command("sync", device).Run()
	}
	if err != nil {
		s.Fatalf("debugfs -w -R %q %s: %v: %s", command, device, err, out)
	}
}

// TestDamagedIsRefused: an ext4 whose metadata was destroyed through its own device, behind which the writer then dies, is mounted
// neither now nor after it was detached in good order, until somebody has repaired it.
func TestDamagedIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.subject("damaged", "ext4", 128*mib)
	s.do("attach", s.Attach)
	s.keep()
	s.must("write", errors.Join(writeFile(filepath.Join(s.Target, "lost"), make([]byte, mib)), writeFile(filepath.Join(s.Target, "left"), []byte("left"))))
	s.do("detach", s.Detach)

	raw := s.raw()
	s.must("staging path", os.MkdirAll(raw.Staging, 0o750))
	s.do("publish as a device", raw.ControllerPublish)
	s.do("stage as a device", raw.Stage)
	device, err := s.Device(raw)
	s.must("device", err)
	s.debug(device, "clri lost")
	s.must("kill", s.KillAll())
	s.start()
	s.eventually("unstage", raw.Unstage)
	s.newest(raw, receipt.Fenced)
	s.do("controller-unpublish", raw.ControllerUnpublish)

	for range 2 { // the second time behind a writer that ended well
		s.do("controller-publish", s.ControllerPublish)
		for range 2 {
			s.refusedAsDamaged()
		}
		s.eventually("unstage", s.Unstage)
		s.newest(s.Volume, receipt.Clean)
		s.do("controller-unpublish", s.ControllerUnpublish)
	}
	s.do("controller-publish", s.ControllerPublish)
	s.refusedAsDamaged()
	device, err = s.Device(s.Volume)
	s.must("device", err)
	if out, err := exec.Command("e2fsck", "-f", "-y", device).CombinedOutput(); err == nil {
		t.Fatalf("there was nothing to repair: %s", out)
	}
	s.do("stage once it is repaired", s.Stage)
	s.clearsAfterRepair()
	s.do("publish", s.Publish)
	_, gone := os.Stat(filepath.Join(s.Target, "lost"))
	text, err := os.ReadFile(filepath.Join(s.Target, "left"))
	if !errors.Is(gone, os.ErrNotExist) || string(text) != "left" {
		t.Errorf("after the repair: %v; %q, %v", gone, text, err)
	}
	s.must("what was synced", s.keptIsThere())
	s.do("detach", s.Detach)
	s.newest(s.Volume, receipt.Clean)
	s.identical(s.Volume, s.fstype)
	s.do("delete", s.Delete)
	s.settled()
}

// refusedAsDamaged stages, and wants a refusal that says what to do, nothing mounted, and it told.
func (s *subject) refusedAsDamaged() {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), callWithin)
	defer cancel()
	err := s.Stage(ctx)
	device, deviceErr := s.Device(s.Volume)
	s.must("device", deviceErr)
	for _, word := range []string{s.ID, "damaged", device, "deleted/unused inode", "e2fsck -f -n " + device, "belay history " + s.ID} {
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), word) {
			s.Fatalf("stage of a damaged filesystem, want FAILED_PRECONDITION and %q: %v", word, err)
		}
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(table), " "+s.Staging+" ") {
		s.Fatalf("a damaged filesystem is mounted: %v", err)
	}
	newest := s.history(s.Volume).Newest(1)[0]
	if newest.Kind != hist.Checked || !strings.Contains(newest.Text, "DAMAGED") || s.volume(s.Volume).Format.Doubt != engine.Damaged {
		s.Fatalf("the newest of its history is %v", newest)
	}
	a, err := s.Ask(s.Context(), "why", s.ID)
	if err != nil || !strings.Contains(a.Stdout, "ext4, DAMAGED") {
		s.Fatalf("belay why does not tell: %v\n%s", err, a.Stdout)
	}
}

func (s *subject) clearsAfterRepair() {
	s.Helper()
	if d := s.volume(s.Volume).Format.Doubt; d != engine.NoDoubt {
		s.Fatalf("repaired, and held against it is: %s", d)
	}
	s.tells(s.Volume, len(s.history(s.Volume).Entries)-2, hist.Checked, hist.Attached)
}
