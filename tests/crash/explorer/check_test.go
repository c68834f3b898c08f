package explorer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// check lets the volume come up: warm where a device may still be alive; cold, where that is enough for a majority without one of the
// stores; and a second time after a power cut. All must agree. Of the two cold ones the first ends with a detach, or the power cut
// comes before it: then what the first recovery showed must be durable.
func (h *truth) check(_ *testing.T, s state, remake func() *disks) (verdict, error) {
	if h.warm && (s.kind() == killed || s.kind() == oneOff && s.draw(4) == 0) {
		if err := h.checkWarm(s.kind(), remake()); err != nil {
			return opened, fmt.Errorf("warm take-over: %w", err)
		}
	}
	left, leave := remake(), s.draw(2) == 0
	first, err := h.recover(left, h.away(s), leave)
	if err != nil {
		return opened, err
	}
	said := opened
	if first == nil { // with one store away nobody can tell; once it is back there is nothing to wait for
		said = unknown
		if first, err = h.recover(left, -1, leave); err != nil {
			return opened, fmt.Errorf("with all stores there: %w", err)
		}
	}
	return said, h.again(left.cut(), first, !leave && (s.kind() == killed || s.draw(3) == 0))
}

// away is the store that the state's first recovery does without; -1: none.
func (h *truth) away(s state) int {
	if n := s.draw(h.stores + 1); h.stores > 2 && n < h.stores {
		return n
	}
	return -1
}

// come is what a volume shows when it comes up.
type come struct {
	blocks   map[int64]sectors
	size     int64
	receipts []string
}

// recover opens the volume cold without the store that is away, and says what it shows, nil where it does not come up and need not.
// leave: it is detached then.
func (h *truth) recover(left *disks, away int, leave bool) (*come, error) {
	all, err := openStores(left, left.names)
	if err != nil {
		return nil, fmt.Errorf("a store does not open: %w", err)
	}
	dirs := all
	if away >= 0 {
		dirs = slices.Delete(slices.Clone(all), away, away+1)
	}
	w, err := openSession(dirs, nil, quiet)
	if err != nil {
		if away >= 0 && errors.Is(err, engine.ErrUnavailable) {
			return nil, nil
		}
		return nil, fmt.Errorf("the volume does not come up (without store %d): %w", away, err)
	}
	defer w.Close()
	if w.Epoch() <= h.epoch {
		return nil, fmt.Errorf("epoch %d after %d", w.Epoch(), h.epoch)
	}
	shown, err := h.shown(w, all)
	if err == nil {
		err = h.allows(shown.blocks, false)
	}
	if err == nil && leave {
		err = sealed(w, dirs[0], shown)
	}
	return shown, err
}

// shown is what the session and the stores show, where that is whole.
func (h *truth) shown(w *mirror.Session, dirs []*store.Dir) (*come, error) {
	blocks, err := h.read(w)
	if err != nil {
		return nil, err
	}
	if size := w.Size(); size != int64(h.size) && (h.growing == 0 || size != int64(h.growing)) {
		return nil, fmt.Errorf("size is %d; promised is %d, asked for %d", size, h.size, h.growing)
	}
	receipts, err := chainOf(dirs, w.Config().Head)
	if err == nil && !slices.Equal(receipts, h.receipts) && (h.sealing == "" || !slices.Equal(receipts, append(slices.Clone(h.receipts), h.sealing))) {
		err = fmt.Errorf("receipts %q; in force are %q, asked for is %q", receipts, h.receipts, h.sealing)
	}
	return &come{blocks, w.Size(), receipts}, err
}

// chainOf follows the receipts that the stores keep back from the one that the seal names.
func chainOf(dirs []*store.Dir, head [32]byte) (out []string, err error) {
	all := map[[32]byte]string{}
	for _, d := range dirs {
		receipts, err := d.Receipts(theVolume)
		if err != nil {
			return nil, fmt.Errorf("receipts in %s: %w", d.Path(), err)
		}
		for _, r := range receipts {
			all[sha256.Sum256(r.Bytes[32:])] = string(r.Bytes)
		}
	}
	for head != [32]byte{} {
		kept, ok := all[head]
		if !ok {
			return nil, fmt.Errorf("receipt %x is on no store", head[:8])
		}
		out = append(out, kept[32:])
		head = [32]byte([]byte(kept[:32]))
	}
	slices.Reverse(out)
	return out, nil
}

// again lets the volume come up after another power cut: what the first recovery showed is promised. leave: it is detached then.
func (h *truth) again(left *disks, first *come, leave bool) error {
	dirs, err := openStores(left, left.names)
	if err != nil {
		return fmt.Errorf("second recovery: %w", err)
	}
	w, err := openSession(dirs, nil, quiet)
	if err != nil {
		return fmt.Errorf("second recovery: %w", err)
	}
	defer w.Close()
	later := h.clone()
	later.receipts, later.sealing = first.receipts, ""
	second, err := later.shown(w, dirs)
	switch {
	case err != nil:
		return fmt.Errorf("second recovery: %w", err)
	case !maps.Equal(first.blocks, second.blocks) || first.size != second.size:
		return fmt.Errorf("the second recovery shows %+v, the first showed %+v", second, first)
	case leave:
		return sealed(w, dirs[0], second)
	}
	return nil
}

// sealed detaches and compares the digests.
func sealed(w *mirror.Session, d *store.Dir, shown *come) error {
	members := w.Config().Members.Len()
	if err := w.Stop(); err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	b, err := w.Evidence(context.Background(), nil)
	if err != nil {
		return fmt.Errorf("evidence: %w", err)
	}
	super, _, err := d.Peek(theVolume)
	if err != nil {
		return err
	}
	want := digestOf(digest.NewHasher(super.Key), shown.blocks)
	switch {
	case len(b.Unresolved) > 0:
		return fmt.Errorf("after a recovery something is unresolved: %+v", b.Unresolved)
	case len(b.Repairs) > 0:
		return fmt.Errorf("a recovery left its members different: %+v", b.Repairs)
	case string(b.Expected.Sum) != string(want[:]):
		return fmt.Errorf("the digest is %x, that of the content %x", []byte(b.Expected.Sum), want)
	}
	agree := 0
	for _, e := range b.Evidence {
		if e.Durable && e.Digest.Equal(b.Expected) {
			agree++
		}
	}
	if agree < members {
		return fmt.Errorf("%d of %d members agree: %+v", agree, members, b.Evidence)
	}
	const receipt = "the last receipt"
	if err := w.Seal(b, []byte(receipt)); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	shown.receipts = append(shown.receipts, receipt)
	return nil
}

// digestOf is the digest of a volume that holds the blocks and zeros.
func digestOf(h *digest.Hasher, blocks map[int64]sectors) [32]byte {
	var sum digest.Sum
	for i, v := range blocks {
		h.Add(&sum, h.Block(i, v.bytes()))
	}
	return sum.Bytes()
}

// checkWarm has another engine follow the dead one: nothing that was acknowledged is lost, or the device is.
func (h *truth) checkWarm(k crashKind, left *disks) error {
	dirs, err := openStores(left, left.names)
	if err != nil {
		return fmt.Errorf("a store does not open: %w", err)
	}
	w, err := openSession(dirs, &mirror.Warm{After: h.epoch}, quiet)
	if err != nil {
		refused := errors.Is(err, engine.ErrDeviceLost) || errors.Is(err, engine.ErrUnavailable)
		if refused && (h.maimed || k == oneOff && h.stores == 1) {
			return nil
		}
		return err
	}
	defer w.Close()
	got, err := h.read(w)
	if err != nil {
		return err
	}
	return h.allows(got, true)
}

var _ vfs.FS = (*disks)(nil)
