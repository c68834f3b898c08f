package host

import (
	"context"
	"errors"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// programs counts those that are held open.
type programs struct {
	Machine
	open int
}

func (p *programs) Open(string) (Executable, error) {
	p.open++
	return p, nil
}

func (p *programs) Close() error {
	p.open--
	return nil
}

// A caller who hangs up before an upgrade has its turn leaves no program open.
func TestUpgradeThatNeverBeginsLeavesNothing(t *testing.T) {
	p := &programs{}
	h := &Host{machine: p, held: map[volume.ID]*held{}}
	h.held[id] = newHeld(h, entry{Volume: id}) // and its goroutine does something else
	ctx, hangUp := context.WithCancel(t.Context())
	hangUp()
	if _, err := h.upgrade(ctx, upgrading{Volume: id, Program: "/program"}, nil); !errors.Is(err, engine.ErrBusy) {
		t.Errorf("%v", err)
	}
	if p.open != 0 {
		t.Errorf("%d programs are open", p.open)
	}
}
