package history

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

const vol = volume.ID("pvc-1")

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newDisk has the directory above the book's.
func newDisk(t *testing.T) *vfs.Mem {
	t.Helper()
	m := vfs.NewMem()
	must(t, m.Mkdir("/state"))
	must(t, m.SyncDir("/"))
	return m
}

func open(t *testing.T, fsys vfs.FS) *Book { return openLogged(t, fsys, io.Discard) }

func openLogged(t *testing.T, fsys vfs.FS, log io.Writer) *Book {
	t.Helper()
	b, err := Open(Config{FS: fsys, Dir: "/state/history", Log: slog.New(slog.NewTextHandler(log, nil)), Clock: ticking()})
	must(t, err)
	t.Cleanup(func() { must(t, b.Close(context.Background())) })
	return b
}

// ticking is a clock that goes on by a second each time somebody looks.
func ticking() func() time.Time {
	var ticks atomic.Int64
	return func() time.Time { return noon.Add(time.Duration(ticks.Add(1)) * time.Second) }
}

var noon = time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)

func read(t *testing.T, b *Book) History {
	t.Helper()
	h, err := b.Read(t.Context(), vol)
	must(t, err)
	return h
}

func texts(h History) (out []string) {
	for _, e := range h.Entries {
		out = append(out, e.Text)
	}
	return out
}

func entry(n int) Entry {
	return Entry{Kind: Attached, Epoch: volume.Epoch(n), Text: fmt.Sprint("entry ", n)}
}

func TestWhatIsAppendedIsReadAgain(t *testing.T) {
	disk := newDisk(t)
	b := open(t, disk)
	if h := read(t, b); len(h.Entries) > 0 || h.Volume != vol {
		t.Errorf("history of an unknown volume: %+v", h)
	}
	all := []Entry{
		{Kind: Created, Text: "1.0 GiB <ext4> & \"more\""},
		{Kind: Checked, Epoch: 7, Text: "ext4 is consistent", Took: 1234567 * time.Nanosecond, Time: time.Date(2026, 9, 1, 1, 2, 3, 456789000, time.FixedZone("x", 3600))},
	}
	for _, e := range all {
		b.Append(vol, e)
	}
	b.Append("pvc-2", entry(9))
	want := []Entry{
		{Kind: Created, Text: all[0].Text, Time: noon.Add(time.Second)},
		{Kind: Checked, Epoch: 7, Text: all[1].Text, Took: 1235 * time.Microsecond, Time: time.Date(2026, 9, 1, 0, 2, 3, 456000000, time.UTC)},
	}
	check := func(b *Book) {
		t.Helper()
		if h := read(t, b); !reflect.DeepEqual(h, History{Volume: vol, Entries: want}) {
			t.Errorf("read %+v, want %+v", h, want)
		}
	}
	check(b)
	check(open(t, disk.CrashClone(nil))) // durable when it can be read
	must(t, b.Close(t.Context()))
	check(open(t, disk.Restart()))
}

// A call that is repeated until somebody acts fills nobody's history.
func TestTheSameAgainIsLeftOut(t *testing.T) {
	b := open(t, newDisk(t))
	for _, n := range []int{1, 1, 2, 2, 2, 1} {
		b.Append(vol, entry(n))
		must(t, b.Sync(t.Context()))
	}
	for _, n := range []int{1, 1, 3} { // in one batch, too
		b.Append(vol, entry(n))
	}
	if got := texts(read(t, b)); !slices.Equal(got, []string{"entry 1", "entry 2", "entry 1", "entry 3"}) {
		t.Errorf("kept %q", got)
	}
}

// Who keeps events of its own tells them late, and all of them again after each of our starts.
func TestToldLate(t *testing.T) {
	disk := newDisk(t)
	b := open(t, disk)
	late := func(n int) Entry { e := entry(n); e.Time = noon.Add(time.Duration(n) * time.Hour); return e }
	b.AppendLate(vol, late(1)) // there is no such volume any more
	if _, err := disk.Stat("/state/history/pvc-1.history"); err == nil {
		t.Error("what was told late made a history")
	}
	b.Append(vol, Entry{Kind: Created, Time: noon.Add(2*time.Hour + time.Nanosecond)})
	for range 3 {
		for n := range 5 {
			b.AppendLate(vol, late(n))
		}
		b.Append(vol, entry(9))
		b.AppendLate(vol, late(4))
		must(t, b.Sync(t.Context()))
	}
	if got := texts(read(t, b)); !slices.Equal(got, []string{"", "entry 2", "entry 3", "entry 4", "entry 9"}) {
		t.Errorf("kept %q", got)
	}
}

func TestEntryInALine(t *testing.T) {
	at := time.Date(2026, 10, 1, 12, 0, 0, 0, time.Local)
	for want, e := range map[string]Entry{
		"2026-10-01 12:00:00 taken-over (epoch 7) [31ms] by version v2": {Time: at, Kind: TakenOver, Epoch: 7, Took: 31400 * time.Microsecond, Text: "by version v2"},
		"2026-10-01 12:00:00 checked [1m3.2s] ext4 is consistent":       {Time: at, Kind: Checked, Took: 63210 * time.Millisecond, Text: "ext4 is consistent"},
	} {
		if got := e.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestTextIsOneBoundedLine(t *testing.T) {
	b := open(t, newDisk(t))
	b.Append(vol, Entry{Kind: "a\nb", Text: "two\nlines\x00\xff, " + strings.Repeat("ü", TextMax)})
	e := read(t, b).Entries[0]
	if e.Kind != "a b" || !strings.HasPrefix(e.Text, "two lines ?, ü") || len(e.Text) > TextMax || !strings.HasSuffix(e.Text, "ü…") {
		t.Errorf("kept %q %q (%d bytes)", e.Kind, e.Text, len(e.Text))
	}
}

func TestOldestMakeRoom(t *testing.T) {
	for name, text := range map[string]string{"by number": "", "by bytes": strings.Repeat("x", 900)} {
		t.Run(name, func(t *testing.T) {
			disk := newDisk(t)
			b := open(t, disk)
			const n = 3 * EntriesMax
			start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			for i := range n {
				b.Append(vol, Entry{Kind: Attached, Epoch: volume.Epoch(i + 1), Text: text, Time: start.Add(time.Duration(i) * time.Second)})
				if i%7 == 0 {
					must(t, b.Sync(t.Context()))
				}
				info, err := disk.Stat("/state/history/pvc-1.history")
				if err == nil && info.Size > BytesMax {
					t.Fatalf("%d bytes after %d entries", info.Size, i+1)
				}
			}
			h := read(t, b)
			kept := len(h.Entries)
			if kept+h.Dropped != n || kept > EntriesMax || kept < BytesMax/2/(len(text)+600) {
				t.Fatalf("kept %d, dropped %d", kept, h.Dropped)
			}
			if first := h.Entries[0]; first.Epoch != volume.Epoch(h.Dropped+1) || !h.Until.Equal(start.Add(time.Duration(h.Dropped-1)*time.Second)) {
				t.Errorf("the first kept is %d, %d were dropped until %v", first.Epoch, h.Dropped, h.Until)
			}
			if last := h.Entries[kept-1].Epoch; last != n {
				t.Errorf("the last kept is %d", last)
			}
		})
	}
}

// Whatever part of the last append reached the disk, what was there before is read, and the next entry is kept.
func TestTornTail(t *testing.T) {
	disk := newDisk(t)
	b := open(t, disk)
	b.Append(vol, entry(1))
	b.Append(vol, entry(2))
	must(t, b.Sync(t.Context()))
	const file = "/state/history/pvc-1.history"
	before, err := vfs.ReadFile(disk, file, fileMax)
	must(t, err)
	b.Append(vol, entry(3))
	must(t, b.Close(t.Context()))
	after, err := vfs.ReadFile(disk, file, fileMax)
	must(t, err)
	for cut := len(before) + 1; cut < len(after); cut++ {
		for _, tail := range [][]byte{after[len(before):cut], make([]byte, cut-len(before)), append([]byte("garbage"), after[len(before)+7:]...)} {
			torn := newDisk(t)
			must(t, torn.MkdirAll("/state/history"))
			must(t, vfs.WriteFile(torn, file, append(slices.Clone(before), tail...)))
			one := open(t, torn)
			if h := read(t, one); !slices.Equal(texts(h), []string{"entry 1", "entry 2"}) || h.Damaged != len(tail) {
				t.Fatalf("cut at %d: %+v", cut, h)
			}
			one.Append(vol, entry(4))
			h := read(t, one)
			if got := texts(h); len(got) != 4 || h.Entries[2].Kind != Missed || got[3] != "entry 4" || h.Damaged != 0 {
				t.Fatalf("cut at %d, then appended: %+v", cut, h)
			}
			must(t, one.Close(t.Context()))
		}
	}
}

func TestDamageInTheMiddle(t *testing.T) {
	disk := newDisk(t)
	b := open(t, disk)
	for i := range 5 {
		b.Append(vol, entry(i))
	}
	must(t, b.Close(t.Context()))
	const file = "/state/history/pvc-1.history"
	whole, err := vfs.ReadFile(disk, file, fileMax)
	must(t, err)
	for i := range whole {
		raw := slices.Clone(whole)
		raw[i] ^= 0x04 // makes no newline of a letter, and no letter of a newline
		h, err := decode(vol, raw)
		if err != nil || h.Damaged == 0 {
			t.Fatalf("byte %d: %+v, %v", i, h, err)
		}
		lost := 5 - len(h.Entries)
		if lost > 2 {
			t.Fatalf("byte %d: %d entries lost", i, lost)
		}
	}
	if h, err := decode("pvc-2", whole); err != nil || len(h.Entries) > 0 || h.Damaged != len(whole) {
		t.Errorf("the file of another volume is believed: %+v, %v", h, err)
	}
}

func TestOfANewerVersionNothingIsTouched(t *testing.T) {
	var log logBuffer
	disk := newDisk(t)
	b := openLogged(t, disk, &log)
	must(t, b.Sync(t.Context()))
	raw := []byte(fmt.Sprintf("%08x %s\n", checksum(vol, []byte(`{"version":2}`)), `{"version":2}`))
	must(t, vfs.WriteFile(disk, b.file(vol), raw))
	b.Append(vol, entry(1))
	if _, err := b.Read(t.Context(), vol); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("read: %v", err)
	}
	if now, err := vfs.ReadFile(disk, b.file(vol), fileMax); err != nil || string(now) != string(raw) {
		t.Errorf("it was changed: %q, %v", now, err)
	}
	if !strings.Contains(log.String(), "entry 1") {
		t.Errorf("the log does not have what could not be kept: %s", log.String())
	}
}

// cuts takes the disk as it may be after a power cut before each call that alters it, with what was synced until then.
type cuts struct {
	mem    *vfs.Mem
	mu     sync.Mutex
	synced int
	taken  []cut
}

type cut struct {
	disk   *vfs.Mem
	synced int
}

func (c *cuts) hook(op *vfs.Op) error {
	if !op.Kind.Alters() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for range 4 {
		c.taken = append(c.taken, cut{c.mem.CrashClone(rand.New(rand.NewPCG(uint64(len(c.taken)), 1))), c.synced})
	}
	return nil
}

func (c *cuts) note(synced int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.synced = synced
}

// The power is cut before every call that alters the disk. What was synced is there, in order, once; what was not is there or not,
// and nothing else is. Then the book goes on.
func TestPowerCutAnywhere(t *testing.T) {
	c := &cuts{mem: newDisk(t)}
	said := workload(t, open(t, vfs.Faulty(c.mem, c.hook)), c)
	if len(c.taken) < 100 {
		t.Errorf("the power was cut %d times only", len(c.taken))
	}
	for i, one := range c.taken {
		after := open(t, one.disk)
		inOrder(t, fmt.Sprint("cut ", i), read(t, after), said[:one.synced], said)
		after.Append(vol, entry(1000))
		after.Append("pvc-2", entry(1))
		if last := read(t, after).Newest(1)[0]; last.Text != "entry 1000" {
			t.Fatalf("cut %d: appended after the crash, read %+v", i, last)
		}
		must(t, after.Close(t.Context()))
	}
}

// workload appends, also over the bound.
func workload(t *testing.T, b *Book, c *cuts) (said []string) {
	t.Helper()
	long := strings.Repeat("y", 1000)
	add := func(n int, text string) {
		e := entry(n)
		e.Text += text
		b.Append(vol, e)
		said = append(said, e.Text)
	}
	sync := func() {
		must(t, b.Sync(t.Context()))
		c.note(len(said))
	}
	for n := range 6 {
		add(n, "")
		sync()
	}
	for n := range 240 { // to just below the bound, at once
		add(100+n, long)
	}
	sync()
	for n := range 16 { // over it
		add(500+n, long)
		sync()
	}
	must(t, b.Close(t.Context()))
	return said
}

// inOrder wants what was synced, as far as it was not dropped to make room, and after it some of what was said later, in order.
func inOrder(t *testing.T, what string, h History, synced, said []string) {
	t.Helper()
	var got []string
	for _, e := range h.Entries {
		if e.Kind != Missed {
			got = append(got, e.Text)
		}
	}
	rest := said[h.Dropped:]
	exact := max(0, len(synced)-h.Dropped)
	if len(got) < exact || !slices.Equal(got[:exact], rest[:exact]) {
		t.Fatalf("%s: %d dropped, %d synced, got %.40q", what, h.Dropped, len(synced), got)
	}
	rest = rest[exact:]
	for _, text := range got[exact:] {
		at := slices.Index(rest, text)
		if at < 0 {
			t.Fatalf("%s: %.40q was never said, or is out of order, or twice: %.40q", what, text, got)
		}
		if at > 0 && h.Damaged == 0 {
			t.Fatalf("%s: a gap before %.40q that nothing tells of: %.40q", what, text, got)
		}
		rest = rest[at+1:]
	}
}

func TestDiskThatFails(t *testing.T) {
	for _, kind := range []vfs.Kind{vfs.OpWrite, vfs.OpDatasync, vfs.OpOpen} {
		t.Run(string(kind), func(t *testing.T) {
			var log logBuffer
			disk, broken := newDisk(t), false
			b := openLogged(t, vfs.Faulty(disk, func(op *vfs.Op) error {
				if broken && op.Kind == kind {
					return syscall.ENOSPC
				}
				return nil
			}), &log)
			b.Append(vol, entry(1))
			must(t, b.Sync(t.Context()))
			broken = true
			b.Append(vol, entry(2))
			must(t, b.Sync(t.Context()))
			b.Append(vol, entry(3))
			must(t, b.Sync(t.Context()))
			broken = false
			b.Append(vol, entry(4))
			h := read(t, b)
			got := texts(h)
			// What was written and not synced may be there all the same.
			said := strings.ReplaceAll(strings.Join(got, "; "), "entry 2; ", "")
			if said != "entry 1; 2 entries could not be kept; the log has them; entry 4" {
				t.Errorf("kept %q", got)
			}
			for _, want := range []string{"entry 2", "entry 3", "no space left"} {
				if !strings.Contains(log.String(), want) {
					t.Errorf("the log does not have %q: %s", want, log.String())
				}
			}
			if again := read(t, open(t, disk.CrashClone(nil))); !reflect.DeepEqual(again, h) {
				t.Errorf("after a power cut: %+v, want %+v", again, h)
			}
		})
	}
}

// Append never waits, however slow the disk is; what does not fit the queue is counted.
func TestAppendNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := make(chan struct{})
		b := open(t, vfs.Faulty(newDisk(t), func(op *vfs.Op) error {
			if op.Kind == vfs.OpDatasync {
				<-slow
			}
			return nil
		}))
		b.Append(vol, entry(0))
		synctest.Wait() // the goroutine waits for the disk
		for n := range queueMax + 3 {
			b.Append(vol, Entry{Kind: Attached, Epoch: volume.Epoch(n + 1)})
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Read(ctx, vol); !errors.Is(err, ErrClosed) {
			t.Errorf("read while the disk hangs and the queue is full: %v", err)
		}
		close(slow)
		synctest.Wait()
		b.Append(vol, entry(9999))
		two := read(t, b).Newest(2)
		if two[0].Kind != Missed || !strings.HasPrefix(two[0].Text, "3 entries") || two[1].Text != "entry 9999" {
			t.Errorf("the newest are %+v", two)
		}
	})
}

func TestAHangingDiskIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := make(chan struct{})
		b := open(t, vfs.Faulty(newDisk(t), func(op *vfs.Op) error {
			if op.Kind == vfs.OpDatasync {
				<-slow
			}
			return nil
		}))
		b.Append(vol, entry(0))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Read(ctx, vol); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		if err := b.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("close: %v", err)
		}
		close(slow)
	})
}

func TestRemove(t *testing.T) {
	var log logBuffer
	disk := newDisk(t)
	b := openLogged(t, disk, &log)
	b.Remove(vol) // there is none
	b.Append(vol, entry(1))
	b.Append("pvc-2", entry(2))
	b.Remove(vol)
	if h := read(t, b); len(h.Entries) > 0 {
		t.Errorf("after its removal: %+v", h)
	}
	if n := strings.Count(log.String(), "history removed"); n != 1 || !strings.Contains(log.String(), "volume=pvc-1") {
		t.Errorf("log: %s", log.String())
	}
	b.Append(vol, entry(1)) // a new volume of that name begins anew
	for _, d := range []*vfs.Mem{disk, disk.CrashClone(nil)} {
		one := b
		if d != disk {
			must(t, b.Sync(t.Context()))
			one = open(t, disk.CrashClone(nil))
		}
		if got := texts(read(t, one)); !slices.Equal(got, []string{"entry 1"}) {
			t.Errorf("kept %q", got)
		}
		if h, err := one.Read(t.Context(), "pvc-2"); err != nil || len(h.Entries) != 1 {
			t.Errorf("the other volume's: %+v, %v", h, err)
		}
	}
}

func TestClosed(t *testing.T) {
	var log logBuffer
	b := openLogged(t, newDisk(t), &log)
	must(t, b.Close(t.Context()))
	must(t, b.Close(t.Context()))
	b.Append(vol, entry(7))
	if !strings.Contains(log.String(), "entry 7") {
		t.Error("the log does not have what came too late")
	}
	if _, err := b.Read(t.Context(), vol); !errors.Is(err, ErrClosed) {
		t.Errorf("read: %v", err)
	}
}

func TestBadNames(t *testing.T) {
	var log logBuffer
	b := openLogged(t, newDisk(t), &log)
	b.Append("../x", entry(1))
	b.Remove("../x")
	if _, err := b.Read(t.Context(), "../x"); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("read: %v", err)
	}
	if n := strings.Count(log.String(), "invalid volume ID"); n != 2 {
		t.Errorf("log: %s", log.String())
	}
	if _, err := Open(Config{}); err == nil {
		t.Error("opened without anything")
	}
}

func TestManyAtOnce(t *testing.T) {
	b := open(t, newDisk(t))
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for n := range 20 {
				b.Append(vol, Entry{Kind: Attached, Epoch: volume.Epoch(100*g + n + 1)})
				b.Append(volume.ID(fmt.Sprint("other-", g)), entry(n))
			}
		})
	}
	all.Wait()
	h := read(t, b)
	if len(h.Entries) != 160 {
		t.Errorf("%d of 160 were kept", len(h.Entries))
	}
	last := map[volume.Epoch]volume.Epoch{} // of each goroutine
	for _, e := range h.Entries {
		if g := e.Epoch / 100; e.Epoch <= last[g] {
			t.Errorf("epoch %d after %d", e.Epoch, last[g])
		} else {
			last[g] = e.Epoch
		}
	}
}

// logBuffer is a log that a test can look at.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
