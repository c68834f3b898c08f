package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/mutant"
)

// verdict is what became of a mutant.
type verdict struct {
	mutant   mutant.Mutant
	killed   bool
	by       kill
	others   []kill // that were looked for as well, to be learned
	broken   string // what was violated
	searched bool   // no seed that was known has killed it
	seeds    int    // that were run
	deaths   int    // of processes, which kill no mutant
	took     time.Duration
}

// trial is a row of seeds of one protocol, right or wrong, that runs until one of them fails.
type trial struct {
	lab    lab
	mutant string

	mu     sync.Mutex // guards the rest
	seeds  int
	deaths int
	found  []finding
	end    context.CancelFunc
}

// finding is a seed that failed.
type finding struct {
	by   kill
	what string
}

// recall runs the seeds that are known to kill the mutant.
func (l lab) recall(ctx context.Context, m mutant.Mutant, known []kill) verdict {
	return l.hunt(ctx, m, func(ctx context.Context, t *trial) {
		for _, k := range known {
			t.run(ctx, ration{kill: k, step: 1, n: 1})
		}
	})
}

// search runs seeds in ascending order, shared among the workers.
func (l lab) search(ctx context.Context, m mutant.Mutant) verdict {
	v := l.hunt(ctx, m, func(ctx context.Context, t *trial) {
		l.share(l.workers, func(i int) {
			first := kill{firstSeed + uint64(i), profiles[m.Name]}
			t.run(ctx, ration{kill: first, step: uint64(l.workers), n: 1 << 30})
		})
	})
	v.searched = true
	return v
}

// firstSeed begins a search: other seeds than those that CI runs of the right protocol.
const firstSeed = 1_000_001

func (l lab) hunt(ctx context.Context, m mutant.Mutant, run func(context.Context, *trial)) verdict {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, l.within)
	defer cancel()
	t := &trial{lab: l, mutant: m.Name, end: cancel}
	run(ctx, t)
	v := verdict{mutant: m, seeds: t.seeds, deaths: t.deaths, took: time.Since(began)}
	if len(t.found) > 0 {
		v.killed, v.by, v.broken = true, t.found[0].by, t.found[0].what
		for _, f := range t.found[1:] {
			v.others = append(v.others, f.by)
		}
	}
	return v
}

// add notes an outcome, and says whether to go on.
func (t *trial) add(o outcome, profile string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seeds++
	if o.Failure != "" {
		t.found = append(t.found, finding{kill{o.Seed, profile}, o.Failure})
	}
	over := len(t.found) >= t.lab.kills || t.mutant == "" && len(t.found) > 0
	if over {
		t.end()
	}
	return !over
}

// died notes that a seed has ended its process. Of a mutant that says nothing: what it does wrong must be told by a check. The right protocol
// must not.
func (t *trial) died(seed uint64, profile string, err error) {
	if t.mutant == "" {
		t.add(outcome{Seed: seed, Failure: fmt.Sprintf("its process ended: %v", err)}, profile)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seeds++
	t.deaths++
}

// correct runs with the right protocol every seed that has killed a mutant, those that were run before it in a search, and some more. None of them
// may fail.
func (l lab) correct(ctx context.Context, verdicts []verdict) verdict {
	began := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := &trial{lab: l, end: cancel}
	all, want := l.rations(verdicts), 0
	for _, r := range all {
		want += r.n
	}
	l.share(len(all), func(i int) { t.run(ctx, all[i]) })
	v := verdict{mutant: mutant.Mutant{Name: "none", Does: "the right protocol"}, seeds: t.seeds, took: time.Since(began)}
	switch {
	case len(t.found) > 0:
		v.killed, v.by, v.broken = true, t.found[0].by, t.found[0].what
	case t.seeds < want:
		v.killed, v.broken = true, fmt.Sprintf("only %d of %d seeds were run", t.seeds, want)
	}
	return v
}

// rations are the seeds of the right protocol, in pieces of some.
func (l lab) rations(verdicts []verdict) (out []ration) {
	const piece = 50
	reach := map[string]int{"": l.right}
	for _, v := range verdicts {
		switch {
		case v.killed && v.searched:
			reach[v.by.profile] = max(reach[v.by.profile], int(v.by.seed-firstSeed)+1)
		case v.killed:
			out = append(out, ration{kill: v.by, step: 1, n: 1})
		}
	}
	for profile, n := range reach {
		for at := 0; at < n; at += piece {
			out = append(out, ration{kill: kill{firstSeed + uint64(at), profile}, step: 1, n: min(piece, n-at)})
		}
	}
	return out
}
