package explorer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

const theVolume volume.ID = "vol"

var installation = quorum.UUID{1}

var quiet = slog.New(slog.DiscardHandler)

func storeNames(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprint("s", i))
	}
	return names
}

// openStores opens the stores of a volume.
func openStores(fsys vfs.FS, names []string) (dirs []*store.Dir, err error) {
	for _, name := range names {
		d, err := store.OpenDir(fsys, "/"+name+"/store", installation)
		if err != nil {
			return dirs, err
		}
		dirs = append(dirs, d)
	}
	return dirs, nil
}

// makeVolume makes a volume of a replica in each store, as an engine does.
func makeVolume(dirs []*store.Dir, size volume.Bytes, verify string) error {
	uuid, err := store.NewUUID()
	key, keyErr := digest.NewKey()
	if err := errors.Join(err, keyErr); err != nil {
		return err
	}
	c := quorum.Config{Epoch: 1, Members: quorum.All(len(dirs)), Size: size, Flags: quorum.Sealed | quorum.Clean, Attributes: fmt.Appendf(nil, `{"parameters":{"verify":%q}}`, verify)}
	for _, d := range dirs {
		incarnation, err := store.NewUUID()
		if err != nil {
			return err
		}
		c.Voters = append(c.Voters, quorum.Voter{Store: d.ID(), Incarnation: incarnation})
	}
	for i, d := range dirs {
		sb := store.Superblock{Volume: theVolume, UUID: uuid, Key: key, LogicalBlockSize: sectorSize, Store: d.ID(), Incarnation: c.Voters[i].Incarnation}
		if err := d.Create(sb, c); err != nil {
			return err
		}
	}
	return nil
}

// openSession is the writer of a new epoch.
func openSession(dirs []*store.Dir, warm *mirror.Warm, log *slog.Logger) (*mirror.Session, error) {
	return mirror.Open(context.Background(), mirror.OpenConfig{
		ID: theVolume, Stores: dirs, Purpose: mirror.ForDevice, Holder: "explorer", Boot: quorum.UUID{9}, Warm: warm, Log: log,
	})
}

// rig is a volume and its writer, with a guest that remembers what it was promised.
type rig struct {
	t     *testing.T
	rec   *recorder
	names []string
	proc  *process
	dirs  []*store.Dir
	s     *mirror.Session // nil: the volume is detached
	truth *truth
	value uint64
	asked chan error // of a request that was not answered in time; nil: there is none
	wrong error      // what the living session did wrong
}

// newRig makes the stores and the volume.
func newRig(t *testing.T, stores int, size volume.Bytes, verify string, seed uint64) *rig {
	r := &rig{t: t, names: storeNames(stores), truth: &truth{stores: stores, size: size, blocks: map[int64]*content{}}}
	r.rec = newRecorder(newDisks(r.names...), seed)
	r.must(r.start())
	r.must(makeVolume(r.dirs, size, verify))
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// record takes images from now on.
func (r *rig) record() { r.rec.expect = func() expectation { return r.truth.clone() } }

func (r *rig) start() (err error) {
	r.proc = r.rec.start()
	r.dirs, err = openStores(r.proc.fs, r.names)
	return err
}

// attach opens a session. It fails only where disks are lost.
func (r *rig) attach(warm bool) {
	var w *mirror.Warm
	if warm {
		w = &mirror.Warm{After: r.truth.epoch}
	} else {
		r.truth.warm = false
	}
	err := r.start()
	if err == nil {
		r.s, err = openSession(r.dirs, w, quiet)
	}
	refused := errors.Is(err, engine.ErrDeviceLost) || errors.Is(err, engine.ErrUnavailable)
	switch {
	case err != nil && r.rec.lost.Load() == 0 && !(warm && r.truth.maimed && refused):
		r.wrong = errors.Join(r.wrong, fmt.Errorf("attach, warm %t: %w", warm, err))
		fallthrough
	case err != nil:
		r.kill()
		return
	}
	if r.s.Epoch() <= r.truth.epoch {
		r.wrong = errors.Join(r.wrong, fmt.Errorf("epoch %d after %d", r.s.Epoch(), r.truth.epoch))
	}
	r.truth.epoch, r.truth.warm = r.s.Epoch(), true
	r.look(warm)
}

// look compares what the session shows with what was promised. After a cold attach that is promised from now on.
func (r *rig) look(warm bool) {
	got, err := r.truth.read(r.s)
	if err == nil {
		err = r.truth.allows(got, warm)
	}
	if err != nil {
		r.wrong = errors.Join(r.wrong, err)
		return
	}
	if warm {
		r.truth.takenOver(got)
	} else {
		r.truth.attached(got)
	}
}

// kill ends the process.
func (r *rig) kill() {
	r.proc.dead.Store(true)
	if r.s != nil {
		r.s.Close()
	}
	if r.asked != nil {
		<-r.asked
	}
	r.s, r.asked = nil, nil
}

// usable says whether requests can be made; where the session is over another one is tried.
func (r *rig) usable() bool {
	if r.asked != nil {
		return false
	}
	if r.s != nil && r.s.LostCause() != nil {
		r.kill()
	}
	if r.s == nil {
		r.attach(false)
	}
	return r.s != nil
}

// answerWithin is how long, on the simulated clock, an answer is waited for: nothing but a stall takes any time.
const answerWithin = 1200 * time.Millisecond

// ask makes a request, and says whether it was answered without error. What is not answered goes on.
func (r *rig) ask(request func() error) bool {
	done := make(chan error, 1)
	go func() { done <- request() }()
	select {
	case err := <-done:
		if err != nil && r.rec.lost.Load() == 0 && !r.truth.maimed {
			r.wrong = errors.Join(r.wrong, err)
		}
		return err == nil
	case <-time.After(answerWithin):
		r.asked = done
		return false
	}
}

// write writes sectors with a value of their own.
func (r *rig) write(from, to int64) {
	if !r.usable() {
		return
	}
	r.value++
	v := r.value
	p := vfs.AlignedBuffer(int(to-from) * sectorSize)
	for i := range p {
		p[i] = byte(v >> (8 * (i % 8)))
	}
	r.truth.begin(from, to, v)
	if r.ask(func() error { return r.s.WriteAt(p, from*sectorSize) }) {
		r.truth.answer(from, to, v)
	}
}

func (r *rig) zero(from, to int64) {
	if !r.usable() {
		return
	}
	r.truth.begin(from, to, 0)
	if r.ask(func() error { return r.s.Zero(from*sectorSize, (to-from)*sectorSize) }) {
		r.truth.answer(from, to, 0)
	}
}

func (r *rig) flush() {
	if r.usable() && r.ask(r.s.Flush) {
		r.truth.flushed()
	}
}

// expand grows the volume as engine.Expand does.
func (r *rig) expand(size volume.Bytes) {
	if !r.usable() {
		return
	}
	r.truth.growing = size
	if r.ask(func() error { return r.s.Update(func(c *quorum.Config) error { c.Size = size; return nil }) }) {
		r.truth.size, r.truth.growing = size, 0
	}
}

// detach takes the volume through barrier, evidence and seal.
func (r *rig) detach() {
	if !r.usable() {
		return
	}
	if !r.ask(r.s.Stop) {
		return
	}
	r.truth.flushed()
	var b engine.Barrier
	if !r.ask(func() (err error) { b, err = r.s.Evidence(context.Background(), nil); return err }) {
		return
	}
	if len(b.Unresolved) > 0 {
		r.wrong = errors.Join(r.wrong, fmt.Errorf("unresolved: %+v", b.Unresolved))
	}
	receipt := fmt.Sprintf("receipt %d of %s", len(r.truth.receipts), b.View)
	r.truth.sealing, r.truth.warm = receipt, false
	if !r.ask(func() error { return r.s.Seal(b, []byte(receipt)) }) {
		return
	}
	r.truth.receipts, r.truth.sealing = append(r.truth.receipts, receipt), ""
	r.s.Close()
	r.s = nil
}

// handOver has the next engine follow one that yields to it.
func (r *rig) handOver() {
	if !r.usable() || !r.ask(r.s.Yield) {
		return
	}
	r.kill()
	r.attach(true)
}

// lose has every call on the disks fail.
func (r *rig) lose(disks ...int) {
	r.truth.maimed = true
	for _, i := range disks {
		r.rec.lost.Or(1 << i)
	}
}

// back has the disks work again, and gives the session the time to find that out.
func (r *rig) back() {
	r.rec.lost.Store(0)
	time.Sleep(3 * time.Second)
	if r.asked == nil {
		return
	}
	select {
	case <-r.asked: // what it was is not known here any more: it may have been done
		r.asked = nil
	case <-time.After(answerWithin):
		r.wrong = errors.Join(r.wrong, errors.New("a request waits for a majority that is there"))
	}
}
