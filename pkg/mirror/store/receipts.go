package store

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// ReceiptMax bounds a receipt, in bytes.
const ReceiptMax = 1 << 20

// Receipt is the proof of one detach, opaque here, under the epoch of the writer that it is about.
type Receipt struct {
	Writer volume.Epoch
	Bytes  []byte
}

const (
	receiptDigits = 16
	receiptSuffix = ".json"
)

// PutReceipt keeps the receipt beside the replica, in place of one of the same epoch that was never put in force. When it
// returns nil that is durable; a power cut meanwhile leaves the earlier one or this one. Calls for one volume come from one process.
func (d *Dir) PutReceipt(id volume.ID, writer volume.Epoch, receipt []byte) error {
	if len(receipt) == 0 || len(receipt) > ReceiptMax {
		return d.replicaError(id, fmt.Errorf("%w receipt of %d bytes: want 1 to %d", volume.ErrInvalid, len(receipt), ReceiptMax))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	name := path.Join(d.replicaPath(id), receiptsName, receiptName(writer))
	if held, err := vfs.ReadFile(d.fs, name, ReceiptMax); err == nil && bytes.Equal(held, receipt) {
		return d.putError(id, d.fs.SyncDir(path.Dir(name))) // it may have been renamed and not synced
	}
	return d.putError(id, vfs.WriteFile(d.fs, name, receipt))
}

func (d *Dir) putError(id volume.ID, err error) error {
	if err == nil {
		return nil
	}
	return d.replicaError(id, fmt.Errorf("keeping a receipt: %w", err))
}

// Receipts returns what PutReceipt kept for the volume, in ascending order of epochs.
func (d *Dir) Receipts(id volume.ID) ([]Receipt, error) {
	dir := path.Join(d.replicaPath(id), receiptsName)
	entries, err := d.fs.ReadDir(dir)
	if err != nil {
		return nil, d.replicaError(id, err)
	}
	var out []Receipt
	for _, e := range entries {
		writer, ok := parseReceiptName(e.Name())
		if !ok {
			continue
		}
		p, err := d.readReceipt(path.Join(dir, e.Name()))
		if err != nil {
			return nil, d.replicaError(id, err)
		}
		out = append(out, Receipt{Writer: writer, Bytes: p})
	}
	slices.SortFunc(out, func(a, b Receipt) int { return cmp.Compare(a.Writer, b.Writer) })
	return out, nil
}

func (d *Dir) readReceipt(name string) ([]byte, error) {
	p, err := vfs.ReadFile(d.fs, name, ReceiptMax)
	switch {
	case errors.Is(err, syscall.EFBIG):
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the replica was removed meanwhile: %w", err)
	}
	return p, err
}

func receiptName(writer volume.Epoch) string {
	return fmt.Sprintf("%0*x%s", receiptDigits, uint64(writer), receiptSuffix)
}

func parseReceiptName(name string) (volume.Epoch, bool) {
	digits, ok := strings.CutSuffix(name, receiptSuffix)
	if !ok || len(digits) != receiptDigits {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 64)
	return volume.Epoch(n), err == nil && receiptName(volume.Epoch(n)) == name
}
