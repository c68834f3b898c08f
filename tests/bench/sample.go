package main

import (
	"maps"
	"slices"
	"strconv"
	"time"
)

// sample is one measurement: a workload on a subject in one round.
type sample struct {
	ops, bytes, seconds float64
	latency             histogram
	sync                histogram // of the flush behind each write
	cpu                 cpuTime
}

func (s sample) iops() float64 { return ratio(s.ops, s.seconds) }

// plus is both measurements together.
func (s sample) plus(o sample) sample {
	sum := sample{ops: s.ops + o.ops, bytes: s.bytes + o.bytes, seconds: s.seconds + o.seconds, latency: histogram{}, sync: histogram{}, cpu: s.cpu.plus(o.cpu)}
	for _, x := range []sample{s, o} {
		sum.latency.merge(x.latency)
		sum.sync.merge(x.sync)
	}
	return sum
}

// quantile is that of an operation: where every write is followed by a flush, of the write plus that of the flush.
func (s sample) quantile(q float64) time.Duration { return s.latency.quantile(q) + s.sync.quantile(q) }

// histogram counts durations.
type histogram map[time.Duration]int64

func (h histogram) add(bins map[string]int64) {
	for ns, n := range bins {
		if v, err := strconv.ParseInt(ns, 10, 64); err == nil {
			h[time.Duration(v)] += n
		}
	}
}

func (h histogram) merge(o histogram) {
	for d, n := range o {
		h[d] += n
	}
}

// quantile is the least duration that at least the share q does not exceed; 0 where nothing was counted.
func (h histogram) quantile(q float64) time.Duration {
	var total, seen int64
	for _, n := range h {
		total += n
	}
	for _, d := range slices.Sorted(maps.Keys(h)) {
		if seen += h[d]; float64(seen) >= q*float64(total) {
			return d
		}
	}
	return 0
}

// ratio is a/b, 0 where that is not defined.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// median is the middle of the values, or the mean of the two in the middle; 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
