// Package sim runs the product's own host, engines, stores, agent and gate on a simulated machine, under one seed: see DESIGN.md.
package sim

import (
	"math/rand/v2"
	"sync"
	"time"
)

// dice decides by what is asked, and not by when: the same question has the same answer in every run of a seed, in whatever order
// goroutines ask. Repeated questions are told apart by their number.
type dice struct {
	seed uint64

	mu    sync.Mutex
	asked map[string]uint64
}

func newDice(seed uint64) *dice { return &dice{seed: seed, asked: map[string]uint64{}} }

// roll returns a generator for the next question of that name.
func (d *dice) roll(question string) *rand.Rand {
	d.mu.Lock()
	n := d.asked[question]
	d.asked[question] = n + 1
	d.mu.Unlock()
	h := uint64(14695981039346656037) // FNV-1a
	for i := range len(question) {
		h = (h ^ uint64(question[i])) * 1099511628211
	}
	return rand.New(rand.NewPCG(d.seed^n*0x9E3779B97F4A7C15, h))
}

// stream returns a generator for one actor, who asks in an order of his own.
func (d *dice) stream(actor string) *rand.Rand { return d.roll("stream " + actor) }

// between draws a duration, small ones more often.
func between(r *rand.Rand, least, most time.Duration) time.Duration {
	x := r.Float64()
	return least + time.Duration(x*x*float64(most-least))
}

// chance is true in one of n cases; never for n 0.
func chance(r *rand.Rand, n int) bool { return n > 0 && r.IntN(n) == 0 }

// pick returns one of the choices.
func pick[T any](r *rand.Rand, choices []T) T { return choices[r.IntN(len(choices))] }
