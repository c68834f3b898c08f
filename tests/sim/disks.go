package sim

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/belay-storage/belay/pkg/vfs"
)

// disk is one simulated disk: what it holds, and how it fails. All that its processes see of it goes through their views.
type disk struct {
	name string   // the directory at which it is mounted; empty: the machine's own, which keeps its state
	mem  *vfs.Mem // the disk, for the simulator itself

	mu     sync.Mutex // guards the rest, and mem
	away   bool       // not mounted
	sick   bool       // every call fails
	slow   int        // how many times slower than usual; 0: usual
	once   map[vfs.Kind]error
	lies   map[fault]int // one call in so many does it; 0: none
	full   bool
	before *vfs.Mem // what was there, where it was replaced
}

// fault is something that a disk does wrong.
type fault string

// Faults. Those of a lying disk are told to nobody.
const (
	lostWrite       fault = "write lost"
	misdirected     fault = "write misdirected"
	tornWrite       fault = "write torn"
	bitRot          fault = "bit rot"
	readError       fault = "EIO of a read"
	writeError      fault = "EIO of a write"
	syncError       fault = "EIO of a sync, cache lost, success afterwards"
	diskFull        fault = "ENOSPC"
	diskSick        fault = "every call fails"
	diskAway        fault = "store unmounted"
	diskSlow        fault = "store slow"
	diskReplaced    fault = "store replaced by an empty one"
	diskStale       fault = "stale store comes back"
	cutWrite        fault = "write cut by a death"
	engineKilled    fault = "engine killed"
	engineKilledAt  fault = "engine killed between two calls"
	engineStopped   fault = "engine stopped"
	hostKilled      fault = "host killed"
	hostKilledAt    fault = "host killed between two calls"
	serverKilled    fault = "server killed"
	serverKilledAt  fault = "server killed between two calls"
	bothKilled      fault = "host and engine killed"
	powerCut        fault = "power cut"
	upgradeGood     fault = "upgrade"
	upgradeBad      fault = "upgrade to a bad version"
	nodeSilent      fault = "node silent"
	nodeLost        fault = "node lost"
	detachForgotten fault = "unstage forgotten"
	detachInUse     fault = "detach asked for while in use"
	detachAbandoned fault = "unstage asked for once and forgotten"
	stagedAgain     fault = "staged again within an attachment"
	straggler       fault = "guest writes on while the volume is detached"
	takeOverCut     fault = "engine killed, and the next one while it takes over"
	diskForged      fault = "replica replaced by another incarnation"
	askedVerify     fault = "verification asked for"
	askedRebuild    fault = "rebuild asked for"
	askedExpand     fault = "volume expanded"
	askedElsewhere  fault = "detach asked for that has nothing to do"
	askedAbout      fault = "volumes listed"
	overridden      fault = "operator's override"
	salvaged        fault = "salvage"
	cacheLost       fault = "EIO of a sync, cache lost, every call fails for a while"
)

// view is what one process sees of the disks. Its death ends it.
type view struct {
	w    *world
	name string // of the process

	mu      sync.Mutex // guards the rest
	dead    bool
	handles map[*vfs.Mem]*vfs.Mem
	flying  []*flight
	altered *disk  // by its last call but the one that it died of
	fuse    int    // how many more altering calls it makes; 0: no bound
	fuseOn  string // where not empty only writes to files with such an end count
	sharp   bool   // it dies with the fuse before anything else is on its way
	blown   func()
}

// flight is a call that is on its way to a disk.
type flight struct {
	disk *disk
	mem  *vfs.Mem
	op   *vfs.Op
}

func (w *world) newView(process string) *view {
	return &view{w: w, name: process, handles: map[*vfs.Mem]*vfs.Mem{}}
}

// fs is the tree of files that the process sees: the machine's, with a disk at each store's directory.
func (v *view) fs() vfs.FS { return vfs.Faulty(&mounts{v}, v.hook) }

// on returns the process's handle of the disk that is at the path.
func (v *view) on(name string) (vfs.FS, error) {
	d := v.w.diskAt(name)
	d.mu.Lock()
	mem := d.mem
	d.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dead {
		return nil, &fs.PathError{Op: "use", Path: name, Err: fs.ErrClosed}
	}
	h := v.handles[mem]
	if h == nil {
		h = mem.Process()
		v.handles[mem] = h
	}
	return h, nil
}

// kill ends the process's use of the disks: of each call on its way it is drawn what becomes of it. Nothing of it reaches them later.
func (v *view) kill() {
	v.mu.Lock()
	if v.dead {
		v.mu.Unlock()
		return
	}
	v.dead = true
	flying, handles := v.flying, v.handles
	v.flying = nil
	v.mu.Unlock()
	slices.SortFunc(flying, func(a, b *flight) int { return strings.Compare(opKey(a.op), opKey(b.op)) })
	for _, f := range flying {
		v.land(f)
	}
	for _, h := range handles {
		h.Restart()
	}
}

// opKey names a call, so that calls sort by file and offset.
func opKey(op *vfs.Op) string {
	b := make([]byte, 0, 96)
	b = append(append(append(append(b, op.Name...), ' '), op.Kind...), ' ')
	for digit := int64(1e12); digit > max(op.Offset, 1); digit /= 10 {
		b = append(b, '0')
	}
	b = append(strconv.AppendInt(b, op.Offset, 10), ' ')
	return string(strconv.AppendInt(b, op.Len, 10))
}

// land decides what becomes of a call whose process died meanwhile.
func (v *view) land(f *flight) {
	if v.sharp {
		return
	}
	r := v.w.dice.roll("land " + v.name + opKey(f.op))
	if f.op.Kind != vfs.OpWrite || r.IntN(3) == 0 {
		return
	}
	n := len(f.op.Data)
	if r.IntN(2) == 0 {
		n = r.IntN(n/sectorBytes+1) * sectorBytes
		v.w.count(cutWrite)
	}
	file, err := f.mem.Open(f.op.Name, 0)
	if err != nil {
		return // it is gone
	}
	defer file.Close()
	_ = file.WriteAt(f.op.Data[:n], f.op.Offset) // a full disk does not take it
}

// hook is asked before each call: it takes its time, may be the last of its process, and may fail.
func (v *view) hook(op *vfs.Op) error {
	d := v.w.diskAt(op.Name)
	key := v.name + " " + opKey(op)
	r := v.w.dice.roll(key)
	f, err := v.takeOff(d, op)
	if err != nil {
		return err
	}
	time.Sleep(d.takes(op.Kind, r))
	if !v.arrive(f, op.Kind.Alters()) {
		return fs.ErrClosed
	}
	err = v.w.fails(d, op, r)
	v.w.trace.add(func() string { return fmt.Sprintf("%s: %v", key, err) })
	return err
}

func (v *view) takeOff(d *disk, op *vfs.Op) (*flight, error) {
	d.mu.Lock()
	mem := d.mem
	d.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dead {
		return nil, fs.ErrClosed
	}
	f := &flight{d, mem, op}
	v.flying = append(v.flying, f)
	return f, nil
}

// arrive is false where the process is dead, or dies of this call.
func (v *view) arrive(f *flight, alters bool) bool {
	v.mu.Lock()
	counts := alters && (v.fuseOn == "" || f.op.Kind == vfs.OpWrite && strings.HasSuffix(f.op.Name, v.fuseOn))
	if counts && !v.dead && v.fuse > 0 {
		if v.fuse--; v.fuse == 0 && v.w.lossUntold() {
			v.fuse = 1 // later
		} else if v.fuse == 0 {
			v.mu.Unlock()
			v.blown()
			return false
		}
	}
	defer v.mu.Unlock()
	v.flying = slices.DeleteFunc(v.flying, func(x *flight) bool { return x == f })
	if counts && !v.dead {
		v.altered = f.disk
	}
	return !v.dead
}

// light has the process die at its n-th altering call from now on.
func (v *view) light(n int, blown func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fuse, v.fuseOn, v.sharp, v.blown = n, "", false, blown
}

// How long calls take, of a usual disk.
const (
	readTakes = 300 * time.Microsecond
	syncTakes = 5 * time.Millisecond
)

func (d *disk) takes(k vfs.Kind, r *rand.Rand) time.Duration {
	d.mu.Lock()
	slow := max(d.slow, 1)
	d.mu.Unlock()
	switch k {
	case vfs.OpStat, vfs.OpInfo, vfs.OpNextData, vfs.OpClose, vfs.OpUnlock, vfs.OpSpace, vfs.OpReadDir:
		return 0
	case vfs.OpDatasync, vfs.OpSyncDir:
		return time.Duration(slow) * between(r, 50*time.Microsecond, syncTakes)
	}
	return time.Duration(slow) * between(r, 5*time.Microsecond, readTakes)
}

// fails says what becomes of a call that has arrived.
func (w *world) fails(d *disk, op *vfs.Op, r *rand.Rand) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.name == "" {
		return nil
	}
	if d.sick && op.Kind != vfs.OpClose && op.Kind != vfs.OpUnlock {
		return syscall.EIO
	}
	if err := d.once[op.Kind]; err != nil && strings.HasSuffix(op.Name, "/data") {
		delete(d.once, op.Kind)
		if err == errCacheLost {
			d.sick = true
			w.background.Go(func() {
				time.Sleep(between(r, 5*time.Millisecond, 8*time.Second))
				d.mu.Lock()
				defer d.mu.Unlock()
				d.sick = false
			})
			err = syscall.EIO
		}
		if op.Kind == vfs.OpDatasync {
			w.lost()
		}
		return d.failOnce(op, err, r)
	}
	return w.lie(d, op, r)
}

// errCacheLost is told to nobody: the sync fails, and for a while so does everything else.
var errCacheLost = errors.New("the disk was reset")

func (d *disk) failOnce(op *vfs.Op, err error, r *rand.Rand) error {
	if op.Kind == vfs.OpDatasync {
		_ = d.mem.LoseUnsynced(op.Name, r) // there is nothing to lose where the file is gone
	}
	return err
}

// lie has a disk do something else than what it says.
func (w *world) lie(d *disk, op *vfs.Op, r *rand.Rand) error {
	if op.Kind != vfs.OpWrite || !strings.HasSuffix(op.Name, "/data") {
		return nil
	}
	switch {
	case chance(r, d.lies[lostWrite]):
		w.count(lostWrite)
		return vfs.ErrSkip
	case chance(r, d.lies[misdirected]):
		w.count(misdirected)
		op.Offset ^= int64(blockBytes) << r.IntN(6)
	case chance(r, d.lies[tornWrite]):
		w.count(tornWrite)
		op.Data = op.Data[:r.IntN(len(op.Data)/blockBytes+1)*blockBytes]
		if len(op.Data) == 0 {
			return vfs.ErrSkip
		}
	}
	return nil
}

// mounts is the tree of the machine, with each disk at its place.
type mounts struct{ v *view }

func through[T any](m *mounts, name string, call func(vfs.FS) (T, error)) (out T, err error) {
	fsys, err := m.v.on(name)
	if err != nil {
		return out, err
	}
	return call(fsys)
}

func (m *mounts) do(name string, call func(vfs.FS) error) error {
	_, err := through(m, name, func(f vfs.FS) (struct{}, error) { return struct{}{}, call(f) })
	return err
}

func (m *mounts) Open(name string, mode vfs.Mode) (vfs.File, error) {
	return through(m, name, func(f vfs.FS) (vfs.File, error) { return f.Open(name, mode) })
}

func (m *mounts) Mkdir(name string) error {
	return m.do(name, func(f vfs.FS) error { return f.Mkdir(name) })
}

func (m *mounts) MkdirAll(name string) error {
	return m.do(name, func(f vfs.FS) error { return f.MkdirAll(name) })
}

func (m *mounts) Rename(from, to string) error {
	return m.do(from, func(f vfs.FS) error { return f.Rename(from, to) })
}

func (m *mounts) Remove(name string) error {
	return m.do(name, func(f vfs.FS) error { return f.Remove(name) })
}

func (m *mounts) RemoveAll(name string) error {
	return m.do(name, func(f vfs.FS) error { return f.RemoveAll(name) })
}

func (m *mounts) ReadDir(name string) ([]fs.DirEntry, error) {
	return through(m, name, func(f vfs.FS) ([]fs.DirEntry, error) { return f.ReadDir(name) })
}

func (m *mounts) Stat(name string) (vfs.Info, error) {
	return through(m, name, func(f vfs.FS) (vfs.Info, error) { return f.Stat(name) })
}

func (m *mounts) SyncDir(name string) error {
	return m.do(name, func(f vfs.FS) error { return f.SyncDir(name) })
}

func (m *mounts) Space(name string) (vfs.Space, error) {
	return through(m, name, func(f vfs.FS) (vfs.Space, error) { return f.Space(name) })
}

func (m *mounts) Lock(name, holder string) (vfs.Unlocker, error) {
	return through(m, name, func(f vfs.FS) (vfs.Unlocker, error) { return f.Lock(name, holder) })
}
