package vfs

import (
	"slices"
	"sync"
	"sync/atomic"
)

// FailNth is a hook that fails the n-th call (counted from 1) of the given kinds with err; without kinds it counts all
// calls that alter the disk.
func FailNth(n int64, err error, kinds ...Kind) Hook {
	var seen atomic.Int64
	return func(op *Op) error {
		if counts(op.Kind, kinds) && seen.Add(1) == n {
			return err
		}
		return nil
	}
}

// FailFrom is a hook that fails the n-th call (counted from 1) of the given kinds and every later call of any kind that
// alters the disk, as when the disk was pulled out; without kinds it counts all calls that alter the disk.
func FailFrom(n int64, err error, kinds ...Kind) Hook {
	var seen atomic.Int64
	return func(op *Op) error {
		if counts(op.Kind, kinds) {
			seen.Add(1)
		}
		if seen.Load() >= n && (op.Kind.Alters() || counts(op.Kind, kinds)) {
			return err
		}
		return nil
	}
}

func counts(kind Kind, kinds []Kind) bool {
	if len(kinds) == 0 {
		return kind.Alters()
	}
	return slices.Contains(kinds, kind)
}

// Hooks asks each hook in turn until one decides. Where several set Op.Then, the last one counts.
func Hooks(hooks ...Hook) Hook {
	return func(op *Op) error {
		for _, h := range hooks {
			if err := h(op); err != nil {
				return err
			}
		}
		return nil
	}
}

// Trace records the calls made. The zero Trace is empty and ready. Calls may run concurrently.
type Trace struct {
	mu  sync.Mutex
	ops []Op
}

// Hook is the hook that records, without Data: the buffers are the callers'.
func (t *Trace) Hook(op *Op) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	recorded := *op
	recorded.Data, recorded.Then = nil, nil
	t.ops = append(t.ops, recorded)
	return nil
}

// Ops returns the calls so far, oldest first.
func (t *Trace) Ops() []Op {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.ops)
}
