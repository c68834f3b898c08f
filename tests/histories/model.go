// Package histories records what clients did to a block device and what they were answered, and says whether a device that keeps
// its promises can have answered so.
//
// It knows nothing of replicas, engines or epochs: a second opinion beside the oracles that know what they wrote. Each sector of 512 bytes has a
// history of its own, which github.com/anishathalye/porcupine checks against the model in this file.
package histories

import (
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/anishathalye/porcupine"
)

// Value is what a sector holds: the number of the write that put it there, or Zeros.
type Value uint64

// Zeros is what a sector holds that was never written, or was zeroed since.
const Zeros Value = 0

// action is what a step does to one sector.
type action uint8

const (
	write   action = iota
	durable        // a write that is on stable media when it is answered
	perhaps        // a write that takes effect or does not: it was not answered, or it may be done a second time
	read
	flush // what was written is on stable media from then on
	lost  // the device is gone, and another one is there instead
)

// step is an operation as one sector sees it.
type step struct {
	action action
	value  Value // what was written, or what was read
	// seen is the value where a read of the history returns it, and left where one does so behind a loss; else they are unread. The model
	// knows values by these alone: what nobody reads need not be told apart, and states that are equal are judged once.
	seen, left Value
}

// unread stands for all values that no read returns.
const unread = ^Value(0)

// state is what is true of one sector.
//
// Invariant: last is stable or in since, which is sorted and without duplicates. A device loss leaves one of stable and since.
type state struct {
	now    Value   // what a read returns, as seen
	last   Value   // the same, as left
	stable Value   // what was flushed last, as left
	since  []Value // what was written since, as left
}

func (s state) equal(o state) bool {
	return s.now == o.now && s.last == o.last && s.stable == o.stable && slices.Equal(s.since, o.since)
}

func (s state) String() string {
	name := func(v Value) string {
		if v == unread {
			return "not read"
		}
		return fmt.Sprint(uint64(v))
	}
	text := fmt.Sprintf("now %s; left by a loss: %s", name(s.now), name(s.stable))
	for _, v := range s.since {
		text += " or " + name(v)
	}
	return text
}

// written is the state after a write that is not yet stable.
func (s state) written(t step) state {
	next := state{now: t.seen, last: t.left, stable: s.stable, since: s.since}
	if at, found := slices.BinarySearch(s.since, t.left); !found {
		next.since = slices.Insert(slices.Clone(s.since), at, t.left)
	}
	return next
}

// settled is the state in which the value is there for good.
func settled(seen, left Value) state { return state{now: seen, last: left, stable: left} }

// survivors are the states after a device loss: what was not flushed may be there or not. Whatever it is, it is for good: the
// next writer has made it durable before anybody reads.
func (s state) survivors() []state {
	out := []state{settled(s.stable, s.stable)}
	for _, v := range s.since {
		if v != s.stable {
			out = append(out, settled(v, v))
		}
	}
	return out
}

// after are the states that the step can lead to; none where the sector cannot have answered so.
func (s state) after(t step) []state {
	switch t.action {
	case write:
		return []state{s.written(t)}
	case durable:
		return []state{settled(t.seen, t.left)}
	case perhaps:
		return []state{s, s.written(t)}
	case flush:
		return []state{settled(s.now, s.last)}
	case lost:
		return s.survivors()
	case read:
		if s.now == t.seen {
			return []state{s}
		}
	}
	return nil
}

// sector is the model of a sector that held zeros when its history began.
var sector = porcupine.NondeterministicModel{
	Init: func() []any { return []any{settled(Zeros, Zeros)} },
	Step: func(from, input, _ any) (next []any) {
		for _, s := range from.(state).after(input.(step)) {
			next = append(next, s)
		}
		return next
	},
	Equal:             func(a, b any) bool { return a.(state).equal(b.(state)) },
	Hash:              func(s any) uint64 { return s.(state).hash() },
	DescribeOperation: func(input, _ any) string { return input.(step).String() },
	DescribeState:     func(s any) string { return s.(state).String() },
}

var hashSeed = maphash.MakeSeed()

func (s state) hash() uint64 {
	h := maphash.Comparable(hashSeed, [3]Value{s.now, s.last, s.stable})
	for _, v := range s.since {
		h = h*31 + uint64(v)
	}
	return h
}

func (t step) String() string {
	switch t.action {
	case flush:
		return "flush"
	case lost:
		return "device lost"
	case read:
		return fmt.Sprintf("read → %d", t.value)
	}
	return fmt.Sprintf("%s %d", map[action]string{write: "write", durable: "durable write", perhaps: "perhaps write"}[t.action], t.value)
}
