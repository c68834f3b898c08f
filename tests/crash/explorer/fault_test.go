package explorer

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/belay-storage/belay/pkg/vfs"
)

// plan is a fault in a course: one call on one disk fails, or that and every later one there until it is over.
type plan struct {
	course  string // life or salvage
	stores  int
	disk    string
	kind    faultKind
	forever bool
	n       int // of the calls that may fail in this way; 0: none
}

func (p plan) String() string {
	how := "once"
	if p.forever {
		how = "for-ever"
	}
	return fmt.Sprintf("%s/%d/%s/%s/%s/%d", p.course, p.stores, p.disk, p.kind.name, how, p.n)
}

// fault performs a plan.
type fault struct {
	plan

	lose  func(name string) // what was not synced of a file
	mu    sync.Mutex
	seen  int
	hit   string // the call that failed first
	quiet bool   // it is over
}

// faultKind is how a call fails, and which calls may.
type faultKind struct {
	name  string
	err   error
	kinds []vfs.Kind // nil: all
	// loses: what was not synced of the file is gone, and a later sync succeeds, as on Linux.
	loses bool
}

var faultKinds = []faultKind{
	{name: "EIO", err: syscall.EIO},
	{name: "EIO-lost", err: syscall.EIO, kinds: []vfs.Kind{vfs.OpDatasync}, loses: true},
	{name: "ENOSPC", err: syscall.ENOSPC, kinds: []vfs.Kind{vfs.OpWrite, vfs.OpDatasync, vfs.OpPunch, vfs.OpTruncate, vfs.OpOpen, vfs.OpMkdir, vfs.OpMkdirAll, vfs.OpRename, vfs.OpSyncDir}},
	{name: "EMFILE", err: syscall.EMFILE, kinds: []vfs.Kind{vfs.OpOpen, vfs.OpLock, vfs.OpReadDir, vfs.OpSyncDir}},
	{name: "EROFS", err: syscall.EROFS, kinds: []vfs.Kind{vfs.OpWrite, vfs.OpPunch, vfs.OpTruncate, vfs.OpOpen, vfs.OpMkdir, vfs.OpMkdirAll, vfs.OpRename, vfs.OpRemove, vfs.OpRemoveAll, vfs.OpLock}},
}

// hook is the vfs.Hook. To give up a lock cannot fail: the kernel does it.
func (f *fault) hook(op *vfs.Op) error {
	if !strings.HasPrefix(op.Name, "/"+f.disk+"/") || op.Kind == vfs.OpUnlock {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	counts := f.kind.kinds == nil || slices.Contains(f.kind.kinds, op.Kind)
	if op.Kind == vfs.OpOpen && op.Mode&vfs.ReadOnly != 0 && f.kind.err != syscall.EIO && f.kind.err != syscall.EMFILE {
		counts = false
	}
	if !counts || f.quiet || f.n == 0 {
		if counts {
			f.seen++
		}
		return nil
	}
	f.seen++
	if f.seen == f.n || f.forever && f.seen > f.n {
		if f.hit == "" {
			f.hit = fmt.Sprint(op.Kind, " ", op.Name)
		}
		if f.kind.loses {
			f.lose(op.Name)
		}
		return f.kind.err
	}
	return nil
}

// over ends the fault.
func (f *fault) over() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.quiet = true
}

// happened says which call failed; empty: none yet.
func (f *fault) happened() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hit
}
