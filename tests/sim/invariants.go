package sim

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// invariants looks at the disks themselves, past every process. I1, I2, I3, I5 and I6 are what the guest checks: it knows what it was
// told, and what it reads must be that.
type invariants struct {
	w         *world
	mu        sync.Mutex           // held for one look at the disks: another one in the same moment would be of other disks
	proposed  map[string]string    // I7: configuration by epoch and step
	committed quorum.Config        // I7: the newest that a majority of its voters was seen to hold
	voters    []quorum.Voter       // I9
	forged    map[quorum.UUID]bool // I9: incarnations that nobody has admitted
	checks    int
	receipts  int
}

func newInvariants(w *world) *invariants {
	return &invariants{w: w, proposed: map[string]string{}, forged: map[quorum.UUID]bool{}}
}

// installation is that of the machine, zero before there is one.
func (v *invariants) installation() (id quorum.UUID) {
	raw, err := vfs.ReadFile(v.w.root.mem.Process(), stateDir+"/installation", 4096)
	if err == nil {
		_ = id.UnmarshalText(bytes.TrimSpace(raw))
	}
	return id
}

// replicaOn opens the volume's replica on what a disk has now, or nil where it has none that can be read.
func (v *invariants) replicaOn(mem *vfs.Mem, at string) *store.Replica {
	p := mem.Process()
	if _, err := p.Stat(at + "/" + store.IdentityFile); err != nil {
		return nil
	}
	dir, err := store.OpenDir(p, at, v.installation())
	if err != nil {
		return nil
	}
	r, err := dir.Inspect(volumeID)
	if err != nil {
		return nil
	}
	return r
}

// check looks at what the stores hold after each step.
func (v *invariants) check() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.checks++
	holders := map[string]int{}
	configs := map[string]quorum.Config{}
	for _, d := range v.w.disks {
		d.mu.Lock()
		media := d.mem.CrashClone(nil) // what is durable: the rest was promised to nobody
		d.mu.Unlock()
		r := v.replicaOn(media, d.name)
		if r == nil {
			continue
		}
		rec, forged := r.Record(), v.forged[r.Superblock().Incarnation]
		if forged && (rec.Promised > 1 || rec.Config.Epoch > 1) {
			v.w.fail("I9: %s has a replica of another incarnation, and was asked to promise %d and to accept %v", d.name, rec.Promised, rec.Config)
		}
		voter := slices.IndexFunc(rec.Config.Voters, func(x quorum.Voter) bool { return x.Incarnation == r.Superblock().Incarnation })
		_ = r.Close()
		if forged || len(rec.Config.Voters) == 0 {
			continue
		}
		v.proposal(rec.Config, d.name)
		if voter < 0 {
			v.w.fail("I9: %s holds a configuration of the volume and is none of its voters: %v", d.name, rec.Config)
			continue
		}
		key := numberOf(rec.Config)
		holders[key]++
		configs[key] = rec.Config
	}
	for _, key := range sorted(holders) {
		if c := configs[key]; holders[key] > len(c.Voters)/2 {
			v.commit(c)
		}
	}
}

func numberOf(c quorum.Config) string { return fmt.Sprintf("%016x.%08x", uint64(c.Epoch), c.Step) }

// proposal: one number never means two configurations.
func (v *invariants) proposal(c quorum.Config, where string) {
	type all quorum.Config // with all that it says: a Config's own text is its number
	key, text := numberOf(c), fmt.Sprintf("%+v", all(c))
	if had, known := v.proposed[key]; known && had != text {
		v.w.fail("I7: configuration %s is\n%s\non %s and was\n%s", key, text, where, had)
	}
	v.proposed[key] = text
}

// proposedOn notes what a store that goes away has been asked to accept, durable or not: it can come back with it.
func (v *invariants) proposedOn(d *disk) {
	v.mu.Lock()
	defer v.mu.Unlock()
	d.mu.Lock()
	held := d.mem.Freeze().Crash(func(int) vfs.Fate { return vfs.Fate{Survives: true} })
	d.mu.Unlock()
	r := v.replicaOn(held, d.name)
	if r == nil {
		return
	}
	defer r.Close()
	if c := r.Record().Config; !v.forged[r.Superblock().Incarnation] && len(c.Voters) > 0 {
		v.proposal(c, d.name)
	}
}

// commit: the newest committed configuration never goes back, and its voters are those that were admitted.
func (v *invariants) commit(c quorum.Config) {
	last := v.committed
	switch {
	case c.Epoch < last.Epoch, c.Epoch == last.Epoch && c.Step < last.Step:
		v.w.fail("I7: a majority holds %v after %v was committed", c, last)
	case v.voters != nil && !slices.Equal(v.voters, c.Voters):
		v.w.fail("I9: voters were %v, are %v", v.voters, c.Voters)
	case c.Members == 0:
		v.w.fail("I9: a configuration without members was committed: %v", c)
	}
	v.committed, v.voters = c, c.Voters
}

// attested is I4 and I8: what the receipt says of each replica is what is on its disk without its cache.
func (v *invariants) attested(r receipt.Receipt) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.receipts++
	if n := durably(r); n <= r.Replicas/2 && r.Kind != receipt.Forced {
		v.w.fail("I4: %d of %d replicas durably hold what the receipt of epoch %d says", n, r.Replicas, r.Writer)
	}
	var sums [][]byte
	for _, e := range r.Evidence {
		if e.State != engine.InSync || e.DigestBy == engine.AttestNone {
			continue
		}
		sum, d := v.mediaDigest(e.ID, r.Size)
		if sum == nil || v.w.rots(d) {
			continue
		}
		sums = append(sums, sum)
		if !bytes.Equal(sum, e.Digest.Sum) {
			v.w.fail("I4: store %s attests to %x in the receipt of epoch %d; on its media is %x", d.name, []byte(e.Digest.Sum), r.Writer, sum)
		}
	}
	for i := range sums {
		if !bytes.Equal(sums[0], sums[i]) {
			v.w.fail("I8: members are not identical: %x and %x", sums[0], sums[i])
		}
	}
}

// durably is how many replicas say so themselves.
func durably(r receipt.Receipt) (n int) {
	for _, e := range r.Evidence {
		if e.State == engine.InSync && e.Durable && e.DigestBy == engine.AttestReplica && bytes.Equal(e.Digest.Sum, r.Expected.Sum) {
			n++
		}
	}
	return n
}

// mediaDigest is the digest of a store's replica after the loss of everything that was not synced, nil where the store is not there.
func (v *invariants) mediaDigest(id engine.ReplicaID, size volume.Bytes) ([]byte, *disk) {
	for _, d := range v.w.disks {
		d.mu.Lock()
		left := d.mem.CrashClone(nil)
		d.mu.Unlock()
		dir, err := store.OpenDir(left, d.name, v.installation())
		if err != nil || engine.ReplicaID(dir.ID().String()) != id {
			continue
		}
		r := v.replicaOn(left, d.name)
		if r == nil {
			v.w.fail("I4: store %s has no replica that can be read", d.name)
			return nil, nil
		}
		defer r.Close()
		if v.forged[r.Superblock().Incarnation] {
			return nil, nil
		}
		return digestOf(r, int64(size)/blockBytes), d
	}
	return nil, nil
}

func digestOf(r *store.Replica, blocks int64) []byte {
	h := digest.NewHasher(r.Superblock().Key)
	var sum digest.Sum
	p := vfs.AlignedBuffer(blockBytes)
	for i := int64(0); i < blocks; i++ {
		next, some, err := r.NextData(i)
		if err != nil || !some || next >= blocks {
			break
		}
		if i = next; r.ReadBlocks(p, i) != nil {
			return []byte("unreadable")
		}
		h.Add(&sum, h.Block(i, p))
	}
	b := sum.Bytes()
	return b[:]
}

// covered wants a receipt in force for every writer of the volume, as its newest: what each OK of a detach rests on.
func (v *invariants) covered(s *server) {
	got, err := s.engine.Get(v.w.ctx(), volumeID)
	if err != nil {
		return // nobody can tell now; the gate could a moment ago
	}
	raws, err := s.engine.Receipts(v.w.ctx(), volumeID)
	if err != nil {
		return
	}
	if breaks := s.book.VerifyChain(raws); len(breaks) > 0 {
		v.w.fail("I2: chain of receipts: %+v", breaks)
	}
	if got.Writer == 0 {
		return
	}
	if len(raws) == 0 {
		v.w.fail("I2: detached after writer %d without a receipt", got.Writer)
		return
	}
	r, err := s.book.Verify(raws[len(raws)-1])
	if err != nil || r.Writer < got.Writer || !bytes.Equal(got.Head, receipt.Hash(raws[len(raws)-1])) {
		v.w.fail("I2: detached after writer %d with a receipt of writer %d (%v)", got.Writer, r.Writer, err)
	}
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
}
