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

// step is an operation as one sector sees it; value is what was written, or what was read.
type step struct {
	action action
	value  Value
}

// state is what is true of one sector.
//
// Invariants: now is in since, or is stable with since empty or not (a value may be written twice). since is sorted, without
// duplicates. A device loss leaves one of stable and since.
type state struct {
	now    Value   // what a read returns
	stable Value   // what was flushed last
	since  []Value // what was written since
}

func (s state) equal(o state) bool {
	return s.now == o.now && s.stable == o.stable && slices.Equal(s.since, o.since)
}

func (s state) String() string {
	if len(s.since) == 0 {
		return fmt.Sprintf("%d, stable", s.now)
	}
	return fmt.Sprintf("%d; stable %d, since then %v", s.now, s.stable, s.since)
}

// written is the state after a write that is not yet stable.
func (s state) written(v Value) state {
	next := state{now: v, stable: s.stable, since: s.since}
	if at, found := slices.BinarySearch(s.since, v); !found {
		next.since = slices.Insert(slices.Clone(s.since), at, v)
	}
	return next
}

func settled(v Value) state { return state{now: v, stable: v} }

// survivors are the states after a device loss: what was not flushed may be there or not. Whatever it is, it is for good: the
// next writer has made it durable before anybody reads.
func (s state) survivors() []state {
	out := []state{settled(s.stable)}
	for _, v := range s.since {
		if v != s.stable {
			out = append(out, settled(v))
		}
	}
	return out
}

// after are the states that the step can lead to; none where the sector cannot have answered so.
func (s state) after(t step) []state {
	switch t.action {
	case write:
		return []state{s.written(t.value)}
	case durable:
		return []state{settled(t.value)}
	case perhaps:
		return []state{s, s.written(t.value)}
	case flush:
		return []state{settled(s.now)}
	case lost:
		return s.survivors()
	case read:
		if s.now == t.value {
			return []state{s}
		}
	}
	return nil
}

// sector is the model of a sector that held zeros when its history began.
var sector = porcupine.NondeterministicModel{
	Init: func() []any { return []any{settled(Zeros)} },
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
	h := maphash.Comparable(hashSeed, [2]Value{s.now, s.stable})
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
