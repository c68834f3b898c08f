package mirror

import (
	"sync"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/volume"
)

// ledgerMax bounds how many repairs and findings a session remembers; the rest is counted in the last one.
const ledgerMax = 256

// ledger is what a session found and mended since it began; the receipt tells it.
type ledger struct {
	mu         sync.Mutex
	repairs    []engine.Repair
	unresolved map[int64]engine.Finding // by block; removed when the block is written anew or heals
	verified   map[engine.ReplicaID]volume.Bytes
}

func (l *ledger) repaired(r engine.Repair) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.repairs) < ledgerMax {
		l.repairs = append(l.repairs, r)
	}
}

func (l *ledger) unresolve(block int64, cause string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unresolved == nil {
		l.unresolved = map[int64]engine.Finding{}
	}
	if len(l.unresolved) < ledgerMax {
		l.unresolved[block] = finding("", block, cause)
	}
}

func (l *ledger) resolve(block int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.unresolved, block)
}

// rewritten resolves what was found in blocks that were written anew.
func (l *ledger) rewritten(first, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for block := range l.unresolved {
		if block >= first && block < first+n {
			delete(l.unresolved, block)
		}
	}
}

func (l *ledger) read(id engine.ReplicaID, n volume.Bytes) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.verified == nil {
		l.verified = map[engine.ReplicaID]volume.Bytes{}
	}
	l.verified[id] += n
}

// entries returns copies of what the ledger holds.
func (l *ledger) entries() (repairs []engine.Repair, unresolved []engine.Finding, verified map[engine.ReplicaID]volume.Bytes) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range sortedKeys(l.unresolved) {
		unresolved = append(unresolved, l.unresolved[b])
	}
	verified = make(map[engine.ReplicaID]volume.Bytes, len(l.verified))
	for id, n := range l.verified {
		verified[id] = n
	}
	return append(repairs, l.repairs...), unresolved, verified
}

func finding(id engine.ReplicaID, block int64, cause string) engine.Finding {
	return engine.Finding{Replica: id, Offset: volume.Bytes(block * store.BlockSize), Length: store.BlockSize, Cause: cause}
}
