package enginetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// Seal implements engine.Control.
func (m *Memory) Seal(_ context.Context, b engine.Barrier, receipt []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, r, err := m.sealable(b.Attachment)
	if err != nil {
		return err
	}
	if r.sealed {
		if n := len(r.receipts); n > 0 && bytes.Equal(r.receipts[n-1], receipt) {
			return nil
		}
		return fmt.Errorf("seal %v: %w: sealed already", b.Attachment, engine.ErrStaleEpoch)
	}
	s := v.serving()
	if s == nil || !s.stopped || s.epoch != b.Writer || r.view() != b.View {
		return fmt.Errorf("seal %v at %s: %w: now at %s", b.Attachment, b.View, engine.ErrStaleEpoch, r.view())
	}
	sum := sha256.Sum256(receipt)
	r.sealed, r.head, r.digest = true, sum[:], m.digest(v, r)
	if s.salvaging {
		r.quarrel, r.pending = "", false
	}
	r.receipts = append(slices.Clone(r.receipts), bytes.Clone(receipt))
	if _, err := m.commit(v, r); err != nil {
		return err
	}
	v.fence = nil
	return nil
}

// sealable is opened, or the volume that is being salvaged, whatever its attachment.
func (m *Memory) sealable(a volume.Attachment) (*memVolume, record, error) {
	if v, r, err := m.current(a.Volume); err == nil && v.fence != nil && v.fence.salvaging && v.fence.at == a {
		return v, r, nil
	}
	return m.opened(a)
}

// serving is who may collect evidence: the fence, else a living writer.
func (v *memVolume) serving() *session {
	if v.fence != nil {
		return v.fence
	}
	if v.writer != nil && !v.writer.dead {
		return v.writer
	}
	return nil
}
