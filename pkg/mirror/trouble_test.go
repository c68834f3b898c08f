package mirror

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// trouble is what goes wrong with a lab's disks at present.
type trouble struct{ now atomic.Pointer[vfs.Hook] }

// is has the disks do as the hook says until the next call. Without hooks they are well.
func (x *trouble) is(hooks ...vfs.Hook) {
	all := vfs.Hooks(hooks...)
	x.now.Store(&all)
}

// troubledLab is a volume on disks in memory that can be made to do wrong.
func troubledLab(t *testing.T, replicas int) (*lab, *trouble, *vfs.Mem) {
	t.Helper()
	x, mem := &trouble{}, vfs.NewMem()
	x.is()
	return newLab(t, vfs.Faulty(mem, func(op *vfs.Op) error { return (*x.now.Load())(op) }), "/", replicas, 32*volume.MiB), x, mem
}

// calls says whether a call is of that kind, on that file of a replica in that store.
func calls(op *vfs.Op, kind vfs.Kind, store int, file string) bool {
	return op.Kind == kind && strings.HasPrefix(op.Name, fmt.Sprintf("/s%d/", store)) && strings.HasSuffix(op.Name, "/"+file)
}

// once fails the first call of the kind on that file in each of the stores.
func once(kind vfs.Kind, file string, err error, stores ...int) vfs.Hook {
	var mu sync.Mutex
	left := slices.Clone(stores)
	return func(op *vfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		i := slices.IndexFunc(left, func(store int) bool { return calls(op, kind, store, file) })
		if i < 0 {
			return nil
		}
		left = slices.Delete(left, i, i+1)
		return err
	}
}

// loses drops writes to a store's data that lie in the range, and reports them as done.
func loses(store int, from, to int64) vfs.Hook {
	return func(op *vfs.Op) error {
		if calls(op, vfs.OpWrite, store, "data") && from <= op.Offset && op.Offset < to {
			return vfs.ErrSkip
		}
		return nil
	}
}
