package mirror

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// holderText says who holds a lock: "belay engine pid=12 start=345 node=n1 volume=v".
func holderText(role, node string, id volume.ID, self host.Identity) string {
	text := fmt.Sprintf("belay %s pid=%d start=%s node=%s", role, self.PID, self.Start, node)
	if id != "" {
		text += " volume=" + string(id)
	}
	return text
}

// bootOf identifies the running kernel.
func bootOf(m host.Machine) (id quorum.UUID, err error) {
	text, err := m.Boot()
	if err != nil {
		return id, err
	}
	return id, id.UnmarshalText([]byte(strings.ReplaceAll(text, "-", "")))
}

// holderWait bounds how long a killed holder may take to die.
const holderWait = 10 * time.Second

// endHolder ends the engine process of another parent that still holds the volume's replicas, and returns when it is
// dead. It never ends anything but the very process that wrote its name into the lock.
func (e *Engine) endHolder(ctx context.Context, id volume.ID) error {
	for _, d := range e.stores.present() {
		r, err := d.Open(id, e.holder("control", id))
		if err == nil {
			r.Close()
			continue
		}
		locked, ok := errors.AsType[*vfs.LockedError](err)
		if !ok {
			continue
		}
		if err := e.endProcess(ctx, locked.Holder); err != nil {
			return fmt.Errorf("%w: volume %s: %w", engine.ErrBusy, id, err)
		}
	}
	return nil
}

func (e *Engine) endProcess(ctx context.Context, holder string) error {
	role, id, ok := parseHolder(holder)
	if !ok || role != "engine" {
		return fmt.Errorf("held by %q, which is no engine process", holder)
	}
	ctx, cancel := context.WithTimeout(ctx, holderWait)
	defer cancel()
	return e.Machine.End(ctx, id)
}

func parseHolder(text string) (role string, id host.Identity, ok bool) {
	f := strings.Fields(text)
	if len(f) < 4 || f[0] != "belay" {
		return "", id, false
	}
	pid, okPid := strings.CutPrefix(f[2], "pid=")
	start, okStart := strings.CutPrefix(f[3], "start=")
	n, err := strconv.Atoi(pid)
	return f[1], host.Identity{PID: n, Start: start}, okPid && okStart && err == nil && n > 1
}
