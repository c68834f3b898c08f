package histories

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// honest is a device that keeps its promises and nothing beyond them, driven by one random source: what runs at the same time is done
// in any order, what a restart finds unanswered is done again, what is not flushed is lost or not, each sector for itself.
type honest struct {
	random  *rand.Rand
	now     int64
	next    Value
	sectors [4]held
	clients [5]*running
	log     *Log
}

// held is what the device has of a sector.
type held struct {
	now, stable Value
	since       []Value
}

func (h *held) write(v Value) { h.now, h.since = v, append(h.since, v) }

func (h *held) flush() { h.stable, h.since = h.now, nil }

func (h *held) lose(random *rand.Rand) {
	if n := random.IntN(len(h.since) + 1); n > 0 {
		h.stable = h.since[n-1]
	}
	h.now, h.since = h.stable, nil
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
		default:
			s.write(r.Values[i])
			if r.Durable && !part {
				s.flush()
			}
		}
	}
	if r.Kind == Flush {
		for i := range d.sectors {
			d.sectors[i].flush()
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
	for i := range d.sectors {
		d.sectors[i].lose(d.random)
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
// each time, and nothing else is.
func TestOneWrongReadIsFound(t *testing.T) {
	spoiled := map[Spoiled]int{}
	for seed := range uint64(honestRuns) {
		random := rand.New(rand.NewPCG(seed, 2))
		all := runHonest(seed, honestSteps)
		for _, how := range []Spoiled{Resurrected, Unflushed} {
			wrong, sector, ok := Spoil(all, how, random)
			if !ok {
				continue
			}
			spoiled[how]++
			// Where many write at once a wrong history can have more orders than can be tried: not to be sure is not to believe.
			if r := Check(wrong, 5*time.Second); len(r.Failures) != 1 || r.Failures[0].Sector != sector {
				t.Fatalf("seed %d: %s in sector %d, and found: %+v", seed, how, sector, r.Failures)
			}
		}
	}
	if spoiled[Resurrected] < honestRuns || spoiled[Unflushed] < honestRuns/2 {
		t.Errorf("too little was spoiled for this to show anything: %v", spoiled)
	}
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
