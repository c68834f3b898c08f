package sim

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/belay-storage/belay/pkg/detach"
)

// kernel is what outlives the programs of a machine and is no disk: who uses the volume's device. It is the gate's Releaser.
type kernel struct {
	mu    sync.Mutex
	users map[string]bool // paths at which the device is shown
}

func newKernel() *kernel { return &kernel{users: map[string]bool{}} }

func (k *kernel) mount(path string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.users[path] = true
}

func (k *kernel) unmount(path string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.users, path)
}

// Release implements detach.Releaser. A raw device has nothing to be written back: the guest did not flush, and the barrier has to.
func (k *kernel) Release(ctx context.Context, e detach.Entry, _ detach.DeviceState) error {
	if held := k.Holders(ctx, e); len(held) > 0 {
		return fmt.Errorf("%w: shown at %v", detach.ErrHeld, held)
	}
	return nil
}

// Holders implements detach.Releaser.
func (k *kernel) Holders(context.Context, detach.Entry) (out []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for path := range k.users {
		out = append(out, path)
	}
	slices.Sort(out)
	return out
}
