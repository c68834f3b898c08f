package histories

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// honest is a device that keeps its promises and nothing beyond them, driven by one random source: what runs at the same time is done
// in any order, what a restart finds unanswered is done again, what is not flushed is lost or not, each sector for itself.
type honest struct {
	random  *rand.Rand
	now     int64
	next    Value
	sectors [4]state
	clients [5]*running
	log     *Log
}

// running is an operation between its call and its return.
type running struct {
	Operation
	done bool
}

func newHonest(seed uint64) *honest {
	d := &honest{random: rand.New(rand.NewPCG(seed, 1)), log: NewLog()}
	return d
}

func (d *honest) tick() int64 { d.now++; return d.now }

// step lets something happen.
func (d *honest) step() {
	switch n := d.random.IntN(200); n {
	case 0:
		d.lose()
	case 1, 2:
		d.restart()
	default:
		d.client(n % len(d.clients))
	}
}

func (d *honest) client(i int) {
	switch r := d.clients[i]; {
	case r == nil:
		d.clients[i] = d.call(i)
	case !r.done:
		d.do(r, false)
	default:
		r.Return = d.tick()
		d.log.Add(r.Operation)
		d.clients[i] = nil
	}
}

func (d *honest) call(client int) *running {
	first := d.random.IntN(len(d.sectors))
	o := Operation{Client: client, First: int64(first), Call: d.tick(), Values: make([]Value, 1+d.random.IntN(len(d.sectors)-first))}
	switch d.random.IntN(10) {
	case 0:
		o.Kind, o.First, o.Values = Flush, 0, nil
	case 1, 2, 3, 4:
		o.Kind = Read
	default:
		d.next++
		o.Kind, o.Durable = Write, d.random.IntN(4) == 0
		for i := range o.Values {
			o.Values[i] = d.next
		}
	}
	return &running{Operation: o}
}

// do lets the operation take effect; in part only in some of its sectors.
func (d *honest) do(r *running, part bool) {
	r.done = true
	for i := range r.Values {
		s := &d.sectors[int(r.First)+i]
		switch {
		case r.Kind == Read:
			r.Values[i] = s.now
		case part && d.random.IntN(2) == 0:
		case r.Durable && !part:
			*s = settled(r.Values[i])
		default:
			*s = s.written(r.Values[i])
		}
	}
	if r.Kind == Flush {
		for i, s := range d.sectors {
			d.sectors[i] = settled(s.now)
		}
	}
}

func (d *honest) restart() {
	from := d.tick()
	for _, r := range d.clients {
		if r != nil && r.Kind == Write && d.random.IntN(2) == 0 {
			d.do(r, false)
		}
	}
	d.log.Add(Operation{Kind: Restart, Client: len(d.clients), Call: from, Return: d.tick()})
}

func (d *honest) lose() {
	from := d.tick()
	for i, r := range d.clients {
		if r == nil {
			continue
		}
		if r.Kind == Write && !r.done {
			d.do(r, true)
		}
		r.Unanswered, r.Return = true, d.tick()
		d.log.Add(r.Operation)
		d.clients[i] = nil
	}
	for i, s := range d.sectors {
		left := s.survivors()
		d.sectors[i] = left[d.random.IntN(len(left))]
	}
	d.log.Add(Operation{Kind: Loss, Client: len(d.clients), Call: from, Return: d.tick()})
}

func runHonest(seed uint64, steps int) []Operation {
	d := newHonest(seed)
	for range steps {
		d.step()
	}
	d.lose() // what still runs is part of the history, too
	return d.log.Operations()
}

const (
	honestRuns  = 60
	honestSteps = 1500
)

// TestHonestDeviceIsBelieved: whatever an honest device does is accepted.
func TestHonestDeviceIsBelieved(t *testing.T) {
	for seed := range uint64(honestRuns) {
		if r := Check(runHonest(seed, honestSteps), enough); len(r.Failures) > 0 {
			t.Fatalf("seed %d: %v", seed, r.Failures[0])
		}
	}
}

// TestOneWrongReadIsFound: in what an honest device did, one read is made to return what must have been overwritten by then. It is found,
// each time.
func TestOneWrongReadIsFound(t *testing.T) {
	spoiled := map[string]int{}
	for seed := range uint64(honestRuns) {
		random := rand.New(rand.NewPCG(seed, 2))
		all := runHonest(seed, honestSteps)
		how, ok := spoil(all, random)
		if !ok {
			continue
		}
		spoiled[how]++
		if r := Check(all, enough); len(r.Failures) != 1 || r.Failures[0].Unknown {
			t.Fatalf("seed %d: %s, and believed: %+v", seed, how, r.Failures)
		}
	}
	if spoiled[resurrected] < honestRuns/4 || spoiled[unflushed] < honestRuns/4 {
		t.Errorf("too little was spoiled for this to show anything: %v", spoiled)
	}
}

const (
	resurrected = "a value from before a write that was answered"
	unflushed   = "a value from before a write that was flushed, behind a loss"
)

// spoil changes one value of one read, and says how.
func spoil(all []Operation, random *rand.Rand) (how string, ok bool) {
	want := []string{resurrected, unflushed}[random.IntN(2)]
	for _, i := range random.Perm(len(all)) {
		if all[i].Kind != Read || all[i].Unanswered {
			continue
		}
		for k := range all[i].Values {
			if old, how := overwritten(all, all[i], all[i].First+int64(k), random); how == want {
				all[i].Values[k] = old
				return how, true
			}
		}
	}
	return "", false
}

// overwritten looks for a value of the sector that the read must not return.
func overwritten(all []Operation, r Operation, sector int64, random *rand.Rand) (old Value, how string) {
	for _, i := range random.Perm(len(all)) {
		w := all[i] // the one that replaced it
		if !w.writesTo(sector) || w.Unanswered || w.Return >= r.Call {
			continue
		}
		how := resurrected
		if slices.ContainsFunc(all, func(o Operation) bool { return o.Kind == Loss && o.Return > w.Call && o.Call < r.Return }) {
			if how = unflushed; !flushedBetween(all, w, r) {
				continue
			}
		}
		for _, u := range all {
			if u.writesTo(sector) && u.Return < w.Call {
				return u.Values[sector-u.First], how
			}
		}
	}
	return 0, ""
}

// flushedBetween says whether a flush, answered, made the write stable before every loss ahead of the read.
func flushedBetween(all []Operation, w, r Operation) bool {
	return slices.ContainsFunc(all, func(f Operation) bool {
		return f.Kind == Flush && !f.Unanswered && f.Call > w.Return && f.Return < r.Call &&
			!slices.ContainsFunc(all, func(o Operation) bool { return o.Kind == Loss && o.Return > w.Call && o.Call < f.Return })
	})
}

func (o Operation) writesTo(sector int64) bool {
	return o.Kind == Write && sector >= o.First && sector < o.First+int64(len(o.Values))
}

func BenchmarkCheck(b *testing.B) {
	for _, steps := range []int{3000, 30000} {
		all := runHonest(1, steps)
		b.Run(fmt.Sprint(steps), func(b *testing.B) {
			for b.Loop() {
				Check(all, enough)
			}
		})
	}
}
