package crash

import (
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/tests/orchestrator"
)

// TestEngineCrashDuringLiveUpgrade is the scenario of Longhorn's test_engine_crash_during_live_upgrade, whose failure (issue 10751) began
// this project: a file is written and synced; the engine is upgraded, and killed at once. There the volume was detached under its mount
// and the file was gone. Here the file is there, with the same md5, and the mount was never lost. Twenty times, each of which must hold.
func TestEngineCrashDuringLiveUpgrade(t *testing.T) {
	t.Parallel()
	const times = 20
	r := newRig(t)
	s := r.subject("live-upgrade", "ext4", 128*mib)
	s.do("attach", s.Attach)
	mounted, kept := s.mount(), s.open("kept-open")
	defer kept.Close()
	for i := range times {
		sum := s.writeRandom("data", 4*mib)
		upgraded := make(chan orchestrator.Answer, 1)
		go func() {
			a, err := s.Ask(t.Context(), "upgrade", s.ID, "--to", s.program([]string{"next", "previous"}[i%2]))
			a.Stderr += fmt.Sprint(err)
			upgraded <- a
		}()
		time.Sleep(rand.N(100 * time.Millisecond)) // the command itself takes some of it to begin
		s.must("kill", s.KillEngine(t.Context(), s.Volume))
		a := <-upgraded
		// An upgrade whose engine was killed may come to its end or be taken back; it may not be in doubt.
		if a.Code != 0 && !strings.Contains(a.Stdout, "rolled back") {
			t.Errorf("belay upgrade: exit code %d: %s%s", a.Code, a.Stdout, a.Stderr)
		}
		s.must("the device", s.serving())
		if now := s.md5("data"); now != sum {
			t.Errorf("%d: md5 was %s, is %s", i, sum, now)
		}
		if now := s.mount(); now != mounted {
			t.Fatalf("%d: the mount was lost: was %d, is %d", i, mounted, now)
		}
		s.must("write through what was open before", errors.Join(appendTo(kept, "alive\n"), kept.Sync()))
	}
	s.must("what was open before", s.holdsText("kept-open", strings.Repeat("alive\n", times)))
	s.must("close", kept.Close())
	s.do("detach", s.Detach)
	s.complete(s.newest(s.Volume, receipt.Clean))
	s.verify(s.Volume)
	s.identical(s.Volume, s.fstype)
	s.do("delete", s.Delete)
	s.settled()
}

func (s *subject) open(name string) *os.File {
	s.Helper()
	f, err := os.OpenFile(filepath.Join(s.Target, name), os.O_CREATE|os.O_RDWR, 0o600)
	s.must("open", err)
	return f
}

func appendTo(f *os.File, text string) error {
	_, err := f.WriteString(text)
	return err
}

func (s *subject) holdsText(name, want string) error {
	have, err := os.ReadFile(filepath.Join(s.Target, name))
	if err == nil && string(have) != want {
		err = fmt.Errorf("%s holds %d bytes, and not the %d that were synced", name, len(have), len(want))
	}
	return err
}

// writeRandom writes a file anew, syncs it, and returns its md5.
func (s *subject) writeRandom(name string, size int) string {
	s.Helper()
	text := make([]byte, size)
	content(text, s.random.Uint64(), 1, 1)
	s.must("write", writeFile(filepath.Join(s.Target, name), text))
	return fmt.Sprintf("%x", md5.Sum(text))
}

// md5 is that of the file as the device has it: past the page cache.
func (s *subject) md5(name string) string {
	s.Helper()
	f, err := os.Open(filepath.Join(s.Target, name))
	s.must("the file", err)
	defer f.Close()
	s.must("drop the cached pages", unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	var text bytes.Buffer
	_, err = io.Copy(&text, f)
	s.must("read", err)
	return fmt.Sprintf("%x", md5.Sum(text.Bytes()))
}
