package receipt

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
)

// Errors of receipts.
var (
	// ErrMalformed: the bytes are not a receipt in canonical form.
	ErrMalformed = errors.New("not a receipt")
	// ErrUnknownKey: signed by a key that is not in the keyring.
	ErrUnknownKey = errors.New("signed by an unknown key")
	// ErrSignature: the signature is not that of the key over these bytes.
	ErrSignature = errors.New("signature does not match")
)

// purpose keeps a signature over a receipt from being taken for one over anything else.
const purpose = "belay receipt 1\n"

// Facts are what the signer knows and the engine does not.
type Facts struct {
	Name      string // the orchestrator's name of the volume
	Forced    bool   // an operator overrode the gate
	Unflushed string // why not everything was written although the engine was stopped in order; empty where it was
	Reason    string // why the writer was fenced, or the override's reason
	Actor     string // who overrode
}

// Book signs and verifies receipts. Safe for concurrent use.
type Book struct {
	keys  *Keyring
	clock func() time.Time
}

// NewBook returns a book over the keyring. clock is the wall clock.
func NewBook(keys *Keyring, clock func() time.Time) *Book { return &Book{keys: keys, clock: clock} }

// Sign returns the receipt for the barrier, in canonical form, linked to b.Head, and the same as a struct. It refuses
// what cannot be true of a detach: ErrMalformed, where the barrier has unresolved ranges and is not forced, too.
func (b *Book) Sign(barrier engine.Barrier, f Facts) ([]byte, Receipt, error) {
	r, err := settle(fill(barrier, f, b.clock(), b.keys.Current()))
	if err != nil {
		return nil, Receipt{}, err
	}
	if err := r.check(); err != nil {
		return nil, Receipt{}, fmt.Errorf("receipt for %v: %w: %w", barrier.Attachment, ErrMalformed, err)
	}
	raw, err := b.keys.seal(r)
	if err != nil {
		return nil, Receipt{}, err
	}
	if len(raw) > RawMax {
		return nil, Receipt{}, fmt.Errorf("receipt for %v: %w: %d bytes, at most %d", barrier.Attachment, ErrMalformed, len(raw), RawMax)
	}
	return raw, r, nil
}

// Verify returns the receipt in raw where it is well-formed and signed by a key of the keyring: else ErrMalformed,
// ErrUnknownKey or ErrSignature.
func (b *Book) Verify(raw []byte) (Receipt, error) {
	r, s, err := parse(raw)
	if err != nil {
		return Receipt{}, err
	}
	if err := b.keys.check(r.Key, s); err != nil {
		return Receipt{}, fmt.Errorf("receipt for %v: %w", r.Attachment, err)
	}
	return r, nil
}

// Break is a place at which a chain of receipts does not hold.
type Break struct {
	Index int    `json:"index"` // of the receipt at fault
	Cause string `json:"cause"`
}

// VerifyChain verifies each receipt, oldest first, and that each names the hash of the one before it, is of the same
// volume and of a newer epoch. No breaks: nothing was changed, removed from between or reordered. What was cut off
// at the end shows only against the engine's own head.
func (b *Book) VerifyChain(raws [][]byte) []Break {
	var breaks []Break
	var before *Receipt
	for i, raw := range raws {
		r, err := b.Verify(raw)
		if err != nil {
			breaks, before = append(breaks, Break{i, err.Error()}), nil
			continue
		}
		if i > 0 {
			if cause := follows(r, before, Hash(raws[i-1])); cause != "" {
				breaks = append(breaks, Break{i, cause})
			}
		}
		before = &r
	}
	return breaks
}

// follows says why r cannot come right after before (nil: unreadable), whose hash is given.
func follows(r Receipt, before *Receipt, hash []byte) string {
	switch {
	case !bytes.Equal(r.Previous, hash):
		return fmt.Sprintf("names %.16s… as the receipt before it, which has %.16s…", r.Previous, engine.HexBytes(hash))
	case before == nil:
		return ""
	case r.Attachment.Volume != before.Attachment.Volume:
		return fmt.Sprintf("is of volume %s, the one before of %s", r.Attachment.Volume, before.Attachment.Volume)
	case r.Writer <= before.Writer:
		return fmt.Sprintf("is of writer epoch %d, the one before of %d", r.Writer, before.Writer)
	}
	return ""
}
