package mirror

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/volume"
)

// endOrphans ends what engine processes a killed predecessor left. They end by themselves as soon as they see it dead; but one
// that is stopped, or hangs in a store, does not, and its device answers nothing: what waits for it cannot be killed, so that
// the volume could never be unmounted. The caller has the stores' locks, hence no other server is their parent.
func (e *Engine) endOrphans(ctx context.Context) {
	devices, err := device.Leftovers()
	if err != nil {
		e.Log.Error("devices of this node cannot be listed", "error", err)
	}
	for _, id := range idsIn(e.stores.present()) {
		if !e.hasRemains(id, devices) {
			continue
		}
		if err := e.endHolder(ctx, id); err != nil {
			e.Log.Error("engine process of the server before cannot be ended", "volume", id, "error", err)
			continue
		}
		os.Remove(e.socket(id)) //nolint:errcheck // of a process that was killed; the next one replaces it anyway
	}
}

// hasRemains says whether an engine process of the volume has been there since it was last detached.
func (e *Engine) hasRemains(id volume.ID, devices []device.Leftover) bool {
	_, err := os.Lstat(e.socket(id))
	name := e.deviceName(id)
	return err == nil || slices.ContainsFunc(devices, func(l device.Leftover) bool { return l.Of(name) })
}

// socket is where the volume's engine process answers.
func (e *Engine) socket(id volume.ID) string {
	return filepath.Join(e.State, "engines", string(id)+".sock")
}
