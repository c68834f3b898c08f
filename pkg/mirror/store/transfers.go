package store

import (
	"errors"
	"sync"
	"syscall"

	"github.com/belay-storage/belay/pkg/vfs"
)

// Transfers are reads and writes of several replicas that are made at the same time, without a goroutine for each. Get them
// from NewTransfers, add to them, call Do, ask Err, and Free them. One goroutine uses them at a time.
type Transfers struct {
	transfers []vfs.Transfer
	of        []*Replica // by transfer
	failed    []failedTransfer
}

type failedTransfer struct {
	replica *Replica
	err     error
}

var idleTransfers = sync.Pool{New: func() any { return new(Transfers) }}

// NewTransfers returns empty Transfers.
func NewTransfers() *Transfers { return idleTransfers.Get().(*Transfers) }

// Free ends the use of t, which holds no buffer any more.
func (t *Transfers) Free() {
	clear(t.transfers)
	clear(t.of)
	clear(t.failed)
	t.transfers, t.of, t.failed = t.transfers[:0], t.of[:0], t.failed[:0]
	idleTransfers.Put(t)
}

// ReadBlocks adds what Replica.ReadBlocks does. p belongs to t until Do returns; that holds for the others too.
func (t *Transfers) ReadBlocks(r *Replica, p []byte, block int64) {
	t.note(r, r.eachFrame(blockGrid, p, block, t.read))
}

// WriteBlocks adds what Replica.WriteBlocks does, regions in any order.
func (t *Transfers) WriteBlocks(r *Replica, p []byte, block int64) {
	t.note(r, r.eachFrame(blockGrid, p, block, t.write))
}

// ReadEntries adds what Replica.ReadEntries does.
func (t *Transfers) ReadEntries(r *Replica, p []byte, page int64) {
	t.note(r, r.eachFrame(entryGrid, p, page, t.read))
}

// WriteEntries adds what Replica.WriteEntries does.
func (t *Transfers) WriteEntries(r *Replica, p []byte, page int64) {
	t.note(r, r.eachFrame(entryGrid, p, page, t.write))
}

func (t *Transfers) read(r *Replica, p []byte, off int64) error {
	t.transfers = append(t.transfers, vfs.Transfer{File: r.data, P: p, Off: off})
	t.of = append(t.of, r)
	return nil
}

func (t *Transfers) write(r *Replica, p []byte, off int64) error {
	if err := r.Failed(); err != nil {
		return err
	}
	t.transfers = append(t.transfers, vfs.Transfer{File: r.data, Write: true, P: p, Off: off})
	t.of = append(t.of, r)
	return nil
}

func (t *Transfers) note(r *Replica, err error) {
	if err != nil {
		t.failed = append(t.failed, failedTransfer{r, err})
	}
}

// Do makes all that was added and meanwhile runs the function, which may be nil. It returns when both are done. A write
// that fails fails its replica as the Replica's own methods do.
func (t *Transfers) Do(meanwhile func()) {
	vfs.Do(t.transfers, meanwhile)
	for i := range t.transfers {
		r, err := t.of[i], t.transfers[i].Err
		if t.transfers[i].Write {
			t.note(r, r.wroteSpace("writing data", err))
		} else {
			t.note(r, r.read("data", err))
		}
	}
}

// Err returns, after Do, an error of the replica, nil where all of its share was done. It is ENOSPC only where a full disk
// was all that was wrong.
func (t *Transfers) Err(r *Replica) (err error) {
	for _, x := range t.failed {
		if x.replica == r && (err == nil || errors.Is(err, syscall.ENOSPC)) {
			err = x.err
		}
	}
	return err
}
