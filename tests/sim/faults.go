package sim

import (
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"github.com/belay-storage/belay/pkg/vfs"
)

// saboteur is who makes things go wrong, until the run heals.
type saboteur struct {
	w *world
	r *rand.Rand
}

// run draws a fault again and again until the run heals, and then takes all of them back.
func (s *saboteur) run(end <-chan struct{}) {
	horizon := time.After(s.w.plan.horizon)
	for {
		select {
		case <-horizon:
			s.heal()
			return
		case <-end:
			s.heal()
			return
		case <-time.After(between(s.r, 10*time.Millisecond, 2*s.w.plan.every)):
		}
		if len(s.w.plan.faults) == 0 {
			continue
		}
		f := pick(s.r, s.w.plan.faults)
		s.w.trace.add(func() string { return "fault: " + string(f) })
		s.do(f)
		s.w.check()
	}
}

// do makes one thing go wrong.
func (s *saboteur) do(f fault) {
	switch f {
	case engineKilled, engineKilledAt, takeOverCut, engineStopped, hostKilled, hostKilledAt, serverKilled, serverKilledAt, bothKilled, powerCut:
		s.death(f)
	case upgradeGood, upgradeBad:
		s.w.upgrade(s.r, f)
	case askedVerify, askedRebuild, askedExpand, askedElsewhere, askedAbout:
		s.w.ask(s.r2(), f)
	case nodeSilent, nodeLost:
		s.node(f)
	case detachForgotten, detachAbandoned, detachInUse, stagedAgain, straggler: // the orchestrator's
	default:
		s.disk(f)
	}
}

// death ends processes, at once or between two of their calls.
func (s *saboteur) death(f fault) {
	m := s.w.programs
	soon := 1 + s.r.IntN(40)
	switch f {
	case engineKilled:
		m.killEngine(s.r)
	case engineKilledAt:
		m.fuseEngine(s.r, soon)
	case takeOverCut:
		m.fuseNext(s.r)
		m.killEngine(s.r)
	case engineStopped:
		m.stopEngine(s.r, between(s.r, 10*time.Millisecond, 10*time.Second))
	case hostKilled:
		s.w.excuse()
		m.killHost()
	case hostKilledAt:
		s.w.excuse()
		m.fuseHost(soon % 12)
	case serverKilled:
		m.killServer()
	case serverKilledAt:
		m.fuseServer(soon)
	case bothKilled:
		s.w.excuse()
		m.killHost()
		m.killEngine(s.r)
	case powerCut:
		if s.w.plan.boots == 0 {
			return
		}
		s.w.plan.boots--
		s.w.cutPower()
	}
	s.w.count(f)
}

// node has the node not answer the gate for a while, or be believed lost.
func (s *saboteur) node(f fault) {
	s.w.count(f)
	s.w.silence(f == nodeLost)
	s.w.background.Go(func() {
		time.Sleep(between(s.r2(), time.Second, 2*time.Minute))
		s.w.speak()
	})
}

// r2 is a generator for what goes on beside.
func (s *saboteur) r2() *rand.Rand { return s.w.dice.stream("beside") }

// disk has a store fail. With one exception a majority of the stores goes on working at any time: what happens without is that everything
// waits, which is met as well, a little less often.
func (s *saboteur) disk(f fault) {
	d := pick(s.r, s.w.disks)
	if s.w.broken() >= len(s.w.disks)/2 && s.r.IntN(3) > 0 {
		d = s.w.brokenOne(d) // it goes on with one that is broken already, or mends it
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch f {
	case lostWrite, misdirected, tornWrite:
		return // each write of the liar draws for itself
	case bitRot:
		s.rot()
		return
	case writeError:
		d.once[vfs.OpWrite] = syscall.EIO
	case syncError:
		d.once[vfs.OpDatasync] = syscall.EIO
	case cacheLost:
		d.once[vfs.OpDatasync] = errCacheLost
	case readError:
		d.once[vfs.OpRead] = syscall.EIO
	case diskFull:
		s.fill(d)
	case diskSick:
		d.sick = !d.sick
	case diskAway:
		d.away = !d.away
	case diskSlow:
		d.slow = pick(s.r, []int{0, 10, 100})
	case diskReplaced, diskStale:
		s.replace(d, s.w.newStoreDisk(d.name))
	case diskForged:
		s.replace(d, s.w.forged(d, s.r))
	}
	s.w.count(f)
}

// fill has the disk take nothing more, or makes room again.
func (s *saboteur) fill(d *disk) {
	d.full = !d.full
	capacity := int64(1 << 40)
	if d.full {
		capacity = 0
	}
	for _, mem := range []*vfs.Mem{d.mem, d.before} {
		if mem != nil {
			mem.SetCapacity(capacity)
		}
	}
}

// replace puts another disk in the place of one, or the one that was there back.
func (s *saboteur) replace(d *disk, by *vfs.Mem) {
	if d.before != nil {
		d.mem, d.before = d.before, nil
		return
	}
	d.before, d.mem = d.mem, by
}

// rot alters a byte of a block of the liar's that nobody writes now.
func (s *saboteur) rot() {
	if s.w.plan.liar < 0 {
		return
	}
	d := s.w.disks[s.w.plan.liar]
	block, ok := s.w.guest.settledBlock(s.r)
	if !ok {
		return
	}
	s.w.guest.mu.Lock()
	s.w.guest.rotten[block] = true
	s.w.guest.mu.Unlock()
	file, at, n := s.rotsAt(block)
	p := d.mem.Process()
	f, err := p.Open(d.name+"/volumes/"+string(volumeID)+"/"+file, 0)
	if err != nil {
		return
	}
	defer f.Close()
	raw := make([]byte, n)
	if f.ReadAt(raw, at) != nil {
		return
	}
	raw[s.r.IntN(len(raw))] ^= 1 << s.r.IntN(8)
	if f.WriteAt(raw, at) == nil && f.Datasync() == nil {
		s.w.count(bitRot)
	}
}

// rotsAt is what of a replica rots: the content of the block, mostly, its checksum, or, where the other replicas are a majority without this one, its
// record, its marks or its sums.
func (s *saboteur) rotsAt(block int64) (file string, at, n int64) {
	region := block / regionBlocks
	kinds := 5
	if s.w.plan.replicas >= 3 {
		kinds = 8
	}
	switch s.r.IntN(kinds) {
	case 0:
		return "data", region*frameBytes + block%regionBlocks*32, 32
	case 5:
		return "meta", 0x2000 + s.r.Int64N(2)*blockBytes, blockBytes
	case 6:
		return "meta", 0x4000, sectorBytes
	case 7:
		return "regions", 32 * region, 32
	}
	return "data", region*frameBytes + entriesBytes + block%regionBlocks*blockBytes, blockBytes
}

// heal takes back what has gone wrong and can be taken back.
func (s *saboteur) heal() {
	for _, d := range s.w.disks {
		d.mu.Lock()
		d.away, d.sick, d.slow = false, false, 0
		clear(d.once)
		clear(d.lies)
		if d.full {
			s.fill(d)
		}
		if d.before != nil {
			s.replace(d, nil)
		}
		d.mu.Unlock()
	}
	s.w.speak()
	s.w.heals(true)
}

// prove notes that a receipt speaks of every block.
func (g *guest) prove() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range g.blocks {
		g.proven[i] = true
	}
}

// settledBlock returns a block of which the newest content is stable and that nobody writes now. Where engines die it is one that a receipt
// speaks of: until an engine has settled what the one before left, a flushed block may have no checksum on any disk.
func (g *guest) settledBlock(r *rand.Rand) (int64, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []int64
	for i, b := range g.blocks {
		if g.w.plan.profile == "rot" && !g.proven[i] {
			continue
		}
		if !slices.ContainsFunc(b[:], func(s sector) bool { return len(s.since) > 0 || s.split }) {
			all = append(all, i)
		}
	}
	if len(all) == 0 {
		return 0, false
	}
	slices.Sort(all)
	return pick(r, all), true
}
