package receipt

import (
	"errors"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/vfs"
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

// Facts are what the signer knows and the engine does not.
type Facts struct {
	Name      string // the orchestrator's name of the volume
	Forced    bool   // an operator overrode the gate
	Unflushed string // why the writer did not flush although the engine was stopped in order; empty where it did
	Reason    string // why the writer was fenced, or the override's reason
	Actor     string // who overrode
}

// Keyring holds the key that signs, and the public keys of all that ever signed here. Safe for concurrent use.
type Keyring struct{}

// OpenKeyring loads the keyring in dir, or makes one with a new key. A key is durable before it signs anything, and
// its files are 0600. A damaged file is an error that names it: it is never replaced.
func OpenKeyring(fs vfs.FS, dir string) (*Keyring, error) { return nil, errors.ErrUnsupported }

// Book signs and verifies receipts. Safe for concurrent use.
type Book struct{}

// NewBook returns a book over the keyring. clock is the wall clock.
func NewBook(keys *Keyring, clock func() time.Time) *Book { return &Book{} }

// Sign returns the receipt for the barrier, in canonical form, linked to b.Head, and the same as a struct.
func (b *Book) Sign(barrier engine.Barrier, f Facts) ([]byte, Receipt, error) {
	return nil, Receipt{}, errors.ErrUnsupported
}

// Parse returns the receipt in raw without looking at its signature: ErrMalformed unless raw is exactly what Sign
// gives for it. At most RawMax bytes are read.
func Parse(raw []byte) (Receipt, error) { return Receipt{}, errors.ErrUnsupported }

// Verify returns the receipt in raw where it is well-formed and signed by a key of the keyring: else ErrMalformed,
// ErrUnknownKey or ErrSignature.
func (b *Book) Verify(raw []byte) (Receipt, error) { return Receipt{}, errors.ErrUnsupported }

// Break is a place at which a chain of receipts does not hold.
type Break struct {
	Index int    `json:"index"` // of the receipt at fault
	Cause string `json:"cause"`
}

// VerifyChain verifies each receipt, oldest first, and that each names the hash of the one before it, is of the same
// volume and of a newer epoch. No breaks: nothing was changed, removed from between or reordered.
func (b *Book) VerifyChain(raws [][]byte) []Break { return nil }

// Hash is the link that the next receipt carries: SHA-256 over raw, signature included, as engines compute it.
func Hash(raw []byte) []byte { return nil }
