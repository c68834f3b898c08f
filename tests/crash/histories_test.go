package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/tests/histories"
	"github.com/belay-storage/belay/tests/orchestrator"
)

// lab is a raw volume that several guests use while processes die beneath it, and the history of it.
type lab struct {
	*soak
	log    *histories.Log
	guests []*guest
	// lostAt is when the device may have been lost at the earliest, where the next one is not there yet.
	lostAt int64
	lost   bool
	kinds  map[string]int // how often each thing was done
}

const (
	labGuests   = 6
	labSize     = 40 * mib
	labDevices  = 4 // of one volume, whose history is judged then
	labEvents   = 4 // during one device
	judgeWithin = 60 * time.Second
	spoiledEach = 5
)

// event is something done to the processes beneath a device that lives.
type event struct {
	name    string
	restart bool // of whoever serves the device
	do      func(*lab) error
}

var events = []event{
	{"upgrade", true, func(l *lab) error { return l.upgraded() }},
	{"upgrade, old engine killed", true, func(l *lab) error { return l.cutShort("old") }},
	{"upgrade, new engine killed", true, func(l *lab) error { return l.cutShort("new") }},
	{"upgrade, host killed", true, func(l *lab) error { return l.cutShort("host") }},
	{"engine stopped and woken", true, func(l *lab) error { return l.naps() }},
	{"engine stopped, upgrade past it", true, func(l *lab) error { l.passBy(l.signal(syscall.SIGSTOP), l.random.IntN(2) == 0); return nil }},
}

func init() {
	for _, d := range deaths {
		events = append(events, event{d.name + " killed", strings.Contains(d.name, "engine"), func(l *lab) error { return d.kill(l.subject) }})
	}
}

func (l *lab) upgraded() error {
	_, err := l.upgrade(l.program([]string{"next", "previous"}[l.random.IntN(2)]), func(string) {})
	return err
}

func (l *lab) cutShort(victim string) error {
	phase := phases[l.random.IntN(len(phases))]
	_ = l.cut(victim, phase.name, time.Duration(l.random.Int64N(int64(phase.takes)))) // either way is right
	return nil
}

func (l *lab) naps() error {
	pid := l.signal(syscall.SIGSTOP)
	time.Sleep(time.Duration(l.random.Int64N(int64(400 * time.Millisecond))))
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

// ending is how a device ends.
type ending struct {
	name string
	kill func(*lab) error // nil: it is detached
}

var endings = []ending{
	{"detached", nil},
	{"host and engine killed", func(l *lab) error { return l.KillDevice(l.Context(), l.Volume) }},
	{"detached", nil},
	{"all killed", func(l *lab) error { return errors.Join(l.KillAll(), l.Start(l.Context())) }},
}

// TestHistories: whatever is done beneath a device, and whatever becomes of it, the answers that its users got are those of a device that
// keeps its promises; which they do not know is made of replicas.
func TestHistories(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	deck, kinds := r.deck(), map[string]int{}
	total, operations := histories.Result{}, 0
	for left, n := historyDevices(t), 0; left > 0; n++ {
		l := r.newLab(fmt.Sprintf("histories-%d", n), kinds)
		order := r.random.Perm(len(endings))
		for i := range min(left, labDevices) {
			l.device(deck, endings[order[i]])
			left--
		}
		l.attached() // the last loss is over, and is looked behind
		l.detached()
		found := l.judge()
		total.Sectors, total.Steps, total.Longest = total.Sectors+found.Sectors, total.Steps+found.Steps, max(total.Longest, found.Longest)
		operations += len(l.log.Operations())
		l.do("delete", l.Delete)
	}
	r.settled()
	r.reportHistories(t, total, operations, kinds)
}

// historyDevices is how many devices live and end: BELAY_HISTORIES (make histories N=100), or enough for every ending.
func historyDevices(t *testing.T) int {
	t.Helper()
	text := os.Getenv("BELAY_HISTORIES")
	if text == "" {
		return labDevices
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("BELAY_HISTORIES=%q: want a number", text)
	}
	return n
}

// deck deals the events so that each comes before any comes again.
func (r *rig) deck() func() event {
	var left []int
	return func() event {
		if len(left) == 0 {
			left = r.random.Perm(len(events))
		}
		e := events[left[0]]
		left = left[1:]
		return e
	}
}

func (r *rig) newLab(name string, kinds map[string]int) *lab {
	r.Helper()
	v := r.create(orchestrator.Spec{Name: name, Size: labSize, Block: true, Parameters: map[string]string{"blockSize": strconv.Itoa(sectorSize)}})
	l := &lab{soak: &soak{subject: &subject{rig: r, Volume: v}}, log: histories.NewLog(), kinds: kinds}
	windows, next, seed := r.windows(), &atomic.Uint64{}, r.random.Uint64()
	for i := range labGuests {
		l.guests = append(l.guests, &guest{
			id: i, log: l.log, seed: seed, next: next, windows: windows, random: rand.New(rand.NewPCG(seed, uint64(i))),
		})
	}
	return l
}

// windows are where the guests meet: the ends of the device, across the border of two regions, and somewhere.
func (r *rig) windows() []int64 {
	const sectors, perRegion, perBlock = labSize / sectorSize, 4 * mib / sectorSize, blockSize / sectorSize
	out := []int64{0, sectors - windowSectors, perRegion - perBlock, 3*perRegion - perBlock}
	for range 8 {
		region := 4 + r.random.Int64N(sectors/perRegion-5)
		out = append(out, region*perRegion+perBlock*r.random.Int64N(perRegion/perBlock-2))
	}
	return out
}

// device is the life of one device: attached, read, used while things are done beneath it, and ended.
func (l *lab) device(deal func() event, end ending) {
	l.Helper()
	l.attached()
	stop, ended := l.use()
	for range labEvents {
		time.Sleep(time.Duration(l.random.Int64N(int64(killWithin / 2))))
		l.happens(deal())
	}
	time.Sleep(time.Duration(l.random.Int64N(int64(killWithin / 2))))
	l.kinds["device "+end.name]++
	if end.kill == nil {
		close(stop)
		l.must("a guest", errors.Join(ended()...))
		l.detached()
		return
	}
	l.lost, l.lostAt = true, l.log.Now()
	l.must(end.name, end.kill(l))
	l.onlyGone(end.name, ended())
	l.finish()
	l.newest(l.Volume, receipt.Fenced)
	l.do("controller-unpublish", l.ControllerUnpublish)
	l.verify(l.Volume)
	l.identical(l.Volume, "")
}

// onlyGone wants every guest to have been answered by errors, and none by what nobody wrote.
func (l *lab) onlyGone(what string, said []error) {
	l.Helper()
	for i, err := range said {
		if !errors.Is(err, errGone) {
			l.Fatalf("device %s: guest %d says %v", what, i, err)
		}
	}
}

// happens does something beneath the device, and waits until it is served.
func (l *lab) happens(e event) {
	l.Helper()
	from := l.log.Now()
	l.must(e.name, e.do(l))
	l.must("the device after "+e.name, l.serving())
	if e.restart {
		l.log.Add(histories.Operation{Client: labGuests, Kind: histories.Restart, Call: from, Return: l.log.Now()})
	}
	l.kinds[e.name]++
}

// attached attaches the volume, which ends a loss, and has everything read once. Partial blocks are what the sectors are for.
func (l *lab) attached() {
	l.Helper()
	l.do("attach", l.Attach)
	if l.lost {
		l.log.Add(histories.Operation{Client: labGuests, Kind: histories.Loss, Call: l.lostAt, Return: l.log.Now()})
		l.lost = false
	}
	g := l.guests[0]
	l.must("open", g.open(l.Target))
	defer g.close()
	if size, err := unix.IoctlGetInt(int(g.f.Fd()), unix.BLKSSZGET); err != nil || size != sectorSize {
		l.Fatalf("logical blocks of %d bytes (%v), want %d", size, err, sectorSize)
	}
	for _, w := range g.windows {
		l.must("read", g.read(w, windowSectors))
	}
}

// detached detaches the volume. Its receipt is a flush.
func (l *lab) detached() {
	l.Helper()
	from := l.log.Now()
	l.eventually("unpublish", l.Unpublish) // for a moment every child that any test starts has what this process has open
	l.do("detach", l.Detach)
	l.newest(l.Volume, receipt.Clean)
	l.log.Add(histories.Operation{Client: labGuests, Kind: histories.Flush, Call: from, Return: l.log.Now()})
	l.verify(l.Volume)
	l.identical(l.Volume, "")
}

// use lets the guests loose. ended waits for all of them and returns what they say; where the device is not lost, none may end by itself.
func (l *lab) use() (stop chan struct{}, ended func() []error) {
	l.Helper()
	stop = make(chan struct{})
	errs := make([]error, len(l.guests))
	var all sync.WaitGroup
	for i, g := range l.guests {
		l.must("open", g.open(l.Target))
		all.Go(func() { defer g.close(); errs[i] = g.run(stop) })
	}
	return stop, func() []error {
		over := make(chan struct{})
		go func() { all.Wait(); close(over) }()
		ctx, cancel := context.WithTimeout(l.Context(), callWithin)
		defer cancel()
		select {
		case <-over:
			return errs
		case <-ctx.Done():
			l.hung(ctx)
			return []error{errors.New("the guests hang")}
		}
	}
}
