package mirror

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/mutant"
	"github.com/belay-storage/belay/pkg/vfs"
)

// errNoCopy: no copy of a block can win. Nothing was changed.
var errNoCopy = errors.New("no copy can win")

// mendBlocks makes every member hold the right content of the blocks, or reports that nobody can tell what that is (EIO).
// The caller holds the blocks exclusively.
func (s *Session) mendBlocks(blocks []int64) error {
	for _, b := range blocks {
		if err := s.mend(b); err != nil {
			return err
		}
	}
	return nil
}

// mend mends one block from the copy that wins (DESIGN.md §3.9). What it wrote is durable after the next flush.
func (s *Session) mend(block int64) error {
	copies, data, err := s.copies(block)
	if err != nil {
		return err
	}
	defer vfs.PutBuffer(data)
	expected, held, err := s.expected(block)
	if err != nil {
		return err
	}
	defer s.pages.put(held)
	win, rule := quorum.Winner(copies, expected)
	if rule == quorum.ByNobody && s.renewed(held, block) {
		return s.mend(block)
	}
	if mutant.RepairFromAnyCopy {
		win, rule = 0, quorum.ByMajority
	}
	if rule == quorum.ByNobody {
		s.ledger.unresolve(block, "no copy matches its checksum")
		s.log.Error("no copy of a block can win", "volume", s.id, "block", block)
		return fmt.Errorf("volume %s: block %d: %w: %w", s.id, block, errNoCopy, syscall.EIO)
	}
	if expected == nil {
		s.adopt(held, block, copies[win])
	}
	s.ledger.resolve(block)
	return s.overwrite(block, copies, win, rule, data[win*store.BlockSize:(win+1)*store.BlockSize])
}

// copies reads a block from every member. data holds the blocks one behind the other, in the order of copies.
func (s *Session) copies(block int64) (copies []quorum.Copy, data []byte, err error) {
	members := s.view.Load().members()
	if len(members) == 0 {
		return nil, nil, errLost
	}
	copies, data = s.copiesOf(members, block)
	return copies, data, nil
}

// copiesOf is copies, of the given replicas.
func (s *Session) copiesOf(replicas []*replica, block int64) (copies []quorum.Copy, data []byte) {
	data = vfs.GetBuffer(len(replicas) * store.BlockSize)
	for i, r := range replicas {
		p := data[i*store.BlockSize : (i+1)*store.BlockSize]
		c := quorum.Copy{Replica: r.index}
		if err := r.ReadBlocks(p, block); err == nil {
			c.Read, c.Data = true, quorum.Hash(s.hash.Block(block, p))
		}
		copies = append(copies, c)
	}
	return copies, data
}

// expected is what the engine knows a block to be, nil where its entry is damaged everywhere. The page is pinned.
func (s *Session) expected(block int64) (*quorum.Hash, *page, error) {
	p, err := s.pages.get(block / store.EntriesPerPage)
	if err != nil {
		return nil, nil, fmt.Errorf("checksums of volume %s: %w", s.id, err)
	}
	if e, sound := p.entry(block); sound {
		h := quorum.Hash(e.Hash)
		return &h, p, nil
	}
	return nil, p, nil
}

// renewed looks for a newer entry of the block on any member than the one in memory, which may be from a member that has lost a write, and says
// that there is one. It is in memory then.
func (s *Session) renewed(p *page, block int64) bool {
	raw := vfs.GetBuffer(store.PageSize)
	defer vfs.PutBuffer(raw)
	if _, err := s.mergePage(p.index, raw); err != nil {
		return false
	}
	at := slot(block)
	found, sound := digest.Decode(raw[at:at+digest.EntrySize], block)
	have, known := p.entry(block)
	if !sound || known && !newer(found.Version, have.Version) {
		return false
	}
	s.pages.set(p, block, found)
	return true
}

// adopt makes a copy's content what the engine expects, where it had no sound entry. The region's sum already counted
// the block as nothing or as what it was, so it is computed anew when the region is next verified.
func (s *Session) adopt(p *page, block int64, c quorum.Copy) {
	s.pages.set(p, block, digest.Entry{Hash: digest.Hash(c.Data), Version: s.nextVersion()})
}

// overwrite writes the winner over the copies that differ, and reads it back from them.
func (s *Session) overwrite(block int64, copies []quorum.Copy, win int, rule quorum.Rule, right []byte) error {
	v := s.view.Load()
	var failed failures
	check := vfs.GetBuffer(store.BlockSize)
	defer vfs.PutBuffer(check)
	for _, c := range copies {
		if c.Read && c.Data == copies[win].Data {
			continue
		}
		r := v.replicas[c.Replica]
		if err := s.rewrite(r, block, right, check, copies[win].Data); err != nil {
			failed = append(failed, failure{r, err})
			continue
		}
		from := v.replicas[copies[win].Replica].id()
		s.ledger.repaired(engine.Repair{Finding: finding(r.id(), block, cause(c)+"; winner "+string(rule)), From: from})
		s.log.Warn("block repaired", "volume", s.id, "block", block, "replica", r.id(), "from", from, "rule", rule)
		s.events.repaired(s)
	}
	if len(failed) > 0 {
		return s.exclude(failed)
	}
	return nil
}

func cause(c quorum.Copy) string {
	if !c.Read {
		return "could not be read"
	}
	return "does not match its checksum"
}

// rewrite writes a block of a replica anew and reads it back. Its region is marked on the replica before: where that fails it is excluded, takes no mark any more, and
// a rebuild has to look there. The mark stays until the region is made clean or settled.
func (s *Session) rewrite(r *replica, block int64, right, check []byte, want quorum.Hash) error {
	if err := r.MarkDirty([]int64{block / store.RegionBlocks}); err != nil {
		return err
	}
	if err := r.WriteBlocks(right, block); err != nil {
		return err
	}
	if err := r.ReadBlocks(check, block); err != nil {
		return err
	}
	if got := quorum.Hash(s.hash.Block(block, check)); got != want {
		return fmt.Errorf("block %d differs right after it was rewritten", block)
	}
	return nil
}
