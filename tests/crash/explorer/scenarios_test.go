package explorer

import (
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/volume"
)

func scenarios() []scenario {
	var all []scenario
	for _, n := range []int{1, 2, 3} {
		name := string(rune('0' + n))
		all = append(all,
			session("writes/"+name, n, writes),
			session("life/"+name, n, life),
			session("deaths/"+name, n, deaths),
			session("hand-over/"+name, n, handOver),
			session("expand/"+name, n, expand),
			session("disk-lost/"+name, n, diskLost),
		)
		all = append(all, volumeLife(n, n))
		all = append(all, exhaustive(n)...)
	}
	all = append(all, volumeLife(2, 3), volumeLife(3, 4), salvageCut(), oneReplica())
	all = append(all, books()...)
	return append(all,
		session("quiet/3", 3, quietRegions),
		session("regions/3", 3, regions),
		session("majority-lost/3", 3, majorityLost),
		session("lost-in-turn/3", 3, lostInTurn),
	)
}

// share is that of a scenario by itself; a sequence of the exhaustive ones has 1.
const share = 80

// session is a scenario of one volume and its writer.
func session(name string, stores int, run func(r *rig)) scenario {
	return scenario{name: name, weight: share, play: func(t *testing.T, seed uint64) []point {
		size := 4 * volume.MiB
		if name == "regions/3" {
			size = 12 * volume.MiB
		}
		verify := "off"
		if name == "quiet/3" {
			verify = "1h"
		}
		r := newRig(t, stores, size, verify, seed)
		r.record()
		run(r)
		return r.finish()
	}}
}

// finish ends the recording.
func (r *rig) finish() []point {
	if r.wrong != nil {
		r.t.Error(r.wrong)
	}
	r.rec.end()
	r.rec.expect = nil
	r.kill()
	return r.rec.points
}

// writes are whole and partial, over each other, at the region's end, zeroed and flushed.
func writes(r *rig) {
	r.attach(false)
	r.write(0, 8)
	r.write(10, 14)
	r.flush()
	r.write(0, 16)
	r.write(12, 30)
	r.write(130*8, 131*8)
	r.zero(8, 16)
	r.flush()
	r.write(1022*8, 1024*8)
	r.write(3, 5)
	r.zero(1023*8, 1024*8)
	r.write(0, 8)
	r.flush()
	r.write(0, 8)
}

// life is two attachments, the second of which changes nothing but a block.
func life(r *rig) {
	r.write(0, 16)
	r.write(300*8+1, 300*8+4)
	r.detach()
	r.attach(false)
	r.detach()
	r.write(8, 16)
	r.zero(300*8, 301*8)
	r.detach()
}

// deaths are those of engines that are followed by others, warm and cold.
func deaths(r *rig) {
	r.write(0, 16)
	r.flush()
	r.write(4, 12)
	r.kill()
	r.attach(true)
	r.write(20, 22)
	r.kill()
	r.attach(true)
	time.Sleep(5 * time.Second) // what is unsettled is settled behind the guest's back
	r.write(0, 3)
	r.flush()
	r.write(16, 24)
	r.kill()
	r.attach(false)
	r.write(0, 8)
	r.kill()
	r.attach(true)
	r.detach()
}

// handOver is what an upgrade does.
func handOver(r *rig) {
	r.write(0, 16)
	r.flush()
	r.write(4, 12)
	r.handOver()
	r.write(0, 8)
	r.zero(8, 16)
	r.handOver()
	r.flush()
	r.detach()
}

// expand grows the volume beyond its first page of the dirty map, and writes behind the old end.
func expand(r *rig) {
	r.write(0, 8)
	r.expand(8 * volume.MiB)
	r.write(1024*8, 1026*8)
	r.flush()
	r.expand(130 * volume.GiB)
	end := int64(130*volume.GiB) / sectorSize
	r.write(end-16, end)
	r.flush()
	r.zero(end-8, end)
	r.flush()
}

// diskLost is a disk that fails, and comes back with what it had.
func diskLost(r *rig) {
	r.write(0, 16)
	r.flush()
	r.write(8, 16)
	r.lose(len(r.names) - 1)
	r.write(0, 8)
	r.write(500*8, 501*8)
	r.flush()
	r.write(3, 5)
	r.back()
	r.write(16, 24)
	r.flush()
	r.detach()
}

// lostInTurn loses one disk after the other, each as soon as the one before is in sync again.
func lostInTurn(r *rig) {
	for i := range r.names {
		r.write(int64(i)*8, int64(i)*8+16)
		r.flush()
		r.lose(i)
		r.write(int64(i)*8+4, int64(i)*8+9)
		r.flush()
		r.back()
	}
	r.kill()
	r.attach(false)
	r.detach()
}

// majorityLost has requests wait until a majority is back.
func majorityLost(r *rig) {
	r.write(0, 16)
	r.flush()
	r.write(4, 12)
	r.lose(1, 2)
	r.flush()
	r.back()
	r.write(0, 8)
	r.flush()
	r.write(8, 16)
	r.lose(0, 1, 2)
	r.write(16, 24)
	r.back()
	r.write(16, 20)
	r.detach()
}

// quietRegions become clean behind the guest's back, and dirty again.
func quietRegions(r *rig) {
	for range 2 {
		r.write(0, 16)
		r.flush()
		r.write(3, 9)
		time.Sleep(45 * time.Second)
	}
	r.write(8, 16)
	r.kill()
	r.attach(true)
	time.Sleep(45 * time.Second)
	r.detach()
}

// regions are written across their ends, and a detach makes them clean.
func regions(r *rig) {
	end := int64(1024 * 8)
	r.write(end-8, end+8)
	r.flush()
	r.write(2*end-3, 2*end+5)
	r.zero(end-16, end)
	r.detach()
	r.write(end, end+8)
	r.write(2*end, 2*end+8)
	r.flush()
}

// The operations of which all short sequences are made.
var operations = map[rune]func(r *rig){
	'w': func(r *rig) { r.write(0, 8); r.write(140*8+2, 140*8+6) },
	'f': (*rig).flush,
	'z': func(r *rig) { r.zero(0, 8) },
	'd': (*rig).detach,
	'c': func(r *rig) { r.kill(); r.attach(false) },
	'u': func(r *rig) { r.kill(); r.attach(r.truth.warm) },
	'l': func(r *rig) { r.lose(0) },
	'b': (*rig).back,
}

const (
	letters     = "wfzdculb"
	sequenceMax = 3
)

// exhaustive are all sequences of up to sequenceMax operations. The machine fails in the last one: the shorter sequence has the others.
func exhaustive(stores int) (all []scenario) {
	var extend func(sequence string)
	extend = func(sequence string) {
		if sequence != "" {
			all = append(all, sequenceOf(stores, sequence))
		}
		if len(sequence) == sequenceMax {
			return
		}
		for _, op := range letters {
			extend(sequence + string(op))
		}
	}
	extend("")
	return all
}

func sequenceOf(stores int, sequence string) scenario {
	name := "sequences-" + string(rune('0'+stores)) + "/" + sequence
	return scenario{name: name, weight: 1, play: func(t *testing.T, seed uint64) []point {
		r := newRig(t, stores, 4*volume.MiB, "off", seed)
		r.attach(false)
		for i, op := range sequence {
			if i == len(sequence)-1 {
				r.record()
			}
			operations[op](r)
		}
		return r.finish()
	}}
}
