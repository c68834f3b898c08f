package receipt

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// Caps of a receipt. What does not fit is cut: the counts tell that it was.
const (
	RawMax      = 256 << 10
	ListMax     = 32 // repairs, and unresolved ranges, that are listed
	EvidenceMax = 16
	textMax     = 512 // bytes of any one text
	hashLen     = sha256.Size
)

// sealed is the form in which a receipt is kept. Body is first, so that a person who looks at the file sees it first.
type sealed struct {
	Body      json.RawMessage `json:"receipt"`
	Signature engine.HexBytes `json:"signature"`
}

// Hash is the link that the next receipt carries: SHA-256 over raw, signature included, as engines compute it.
func Hash(raw []byte) []byte {
	sum := sha256.Sum256(raw)
	return sum[:]
}

// Parse returns the receipt in raw without looking at its signature: ErrMalformed unless raw is exactly what Sign
// gives for it, so that one receipt has one hash.
func Parse(raw []byte) (Receipt, error) {
	r, _, err := parse(raw)
	return r, err
}

func parse(raw []byte) (Receipt, sealed, error) {
	if len(raw) > RawMax {
		return Receipt{}, sealed{}, fmt.Errorf("%w: %d bytes, at most %d", ErrMalformed, len(raw), RawMax)
	}
	var s sealed
	var r Receipt
	err := strict(raw, &s)
	if err == nil {
		err = strict(s.Body, &r)
	}
	if err != nil {
		return Receipt{}, sealed{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if err := r.check(); err != nil {
		return Receipt{}, sealed{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if again, err := canonical(r, s.Signature); err != nil || !bytes.Equal(again, raw) {
		return Receipt{}, sealed{}, fmt.Errorf("%w: not in canonical form", ErrMalformed)
	}
	return r, s, nil
}

// strict decodes one value of known fields, and nothing after it.
func strict(raw []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows it")
	}
	return nil
}

func canonical(r Receipt, signature []byte) ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return json.Marshal(sealed{Body: body, Signature: signature})
}

// settle returns r as it will read once written: invalid text is replaced, once and for all.
func settle(r Receipt) (Receipt, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return Receipt{}, err
	}
	var out Receipt
	return out, json.Unmarshal(body, &out)
}

// fill makes a receipt of what the engine and the signer know. Lists are never nil: the canonical form of none is [].
func fill(b engine.Barrier, f Facts, at time.Time, key string) Receipt {
	clean := b.Clean && f.Unflushed == ""
	return Receipt{
		Version: Version, Kind: KindOf(f.Forced || b.Salvaged != nil, clean, InSync(b) >= b.Replicas), Name: clip(f.Name),
		Attachment: b.Attachment, Writer: b.Writer, View: clip(b.View), Clean: clean,
		Size: b.Size, Replicas: b.Replicas, Expected: b.Expected, Evidence: replicas(b.Evidence),
		Verified: b.Verified, Repairs: repairs(b.Repairs), RepairCount: len(b.Repairs),
		Unresolved: findings(b.Unresolved), UnresolvedCount: len(b.Unresolved),
		Salvaged: b.Salvaged,
		Reason:   clip(join(f.Reason, f.Unflushed)), Actor: clip(f.Actor),
		At: at.UTC().Truncate(time.Millisecond), Previous: b.Head, Key: key,
	}
}

// InSync is the number of replicas that were in sync at the barrier and answered.
func InSync(b engine.Barrier) (n int) {
	for _, e := range b.Evidence {
		if e.State == engine.InSync && e.Error == "" {
			n++
		}
	}
	return n
}

func replicas(from []engine.Evidence) []Replica {
	out := make([]Replica, 0, len(from))
	for _, e := range from {
		out = append(out, Replica{
			ID: e.ID, Domain: clip(e.Domain), Place: clip(e.Place), State: e.State, Incarnation: clip(e.Incarnation),
			Position: e.Position, PositionBy: e.PositionBy, Digest: e.Digest, DigestBy: e.DigestBy,
			Durable: e.Durable, Lossy: e.Lossy, Verified: e.Verified, Error: clip(join(e.Error, e.Reason)),
		})
	}
	return out
}

func repairs(from []engine.Repair) (out []engine.Repair) {
	for _, r := range from[:min(len(from), ListMax)] {
		r.Cause = clip(r.Cause)
		out = append(out, r)
	}
	return out
}

func findings(from []engine.Finding) (out []engine.Finding) {
	for _, f := range from[:min(len(from), ListMax)] {
		f.Cause = clip(f.Cause)
		out = append(out, f)
	}
	return out
}

// check says why r cannot be a receipt.
func (r Receipt) check() error {
	if r.Version != Version {
		return fmt.Errorf("version %d: this program knows %d", r.Version, Version)
	}
	if _, err := volume.ParseID(string(r.Attachment.Volume)); err != nil {
		return err
	}
	if _, err := volume.ParseNodeID(string(r.Attachment.Node)); err != nil {
		return err
	}
	return r.checkFacts()
}

func (r Receipt) checkFacts() error {
	switch {
	case r.Attachment.Epoch == 0 || r.Writer < r.Attachment.Epoch:
		return fmt.Errorf("writer epoch %d is not within attachment epoch %d", r.Writer, r.Attachment.Epoch)
	case r.Kind != KindOf(r.Kind == Forced, r.Clean, r.Kind != Degraded):
		return fmt.Errorf("kind %q does not fit clean=%t", r.Kind, r.Clean)
	case r.Kind != Forced && r.UnresolvedCount > 0:
		return fmt.Errorf("%d ranges for which no copy can win need a forced receipt", r.UnresolvedCount)
	case r.Kind != Forced && r.Salvaged != nil:
		return fmt.Errorf("a salvage needs a forced receipt, not %q", r.Kind)
	case r.Replicas < 1 || len(r.Evidence) > EvidenceMax:
		return fmt.Errorf("%d replicas, %d said anything", r.Replicas, len(r.Evidence))
	case len(r.Previous) != 0 && len(r.Previous) != hashLen:
		return fmt.Errorf("previous hash of %d bytes", len(r.Previous))
	case len(r.Repairs) > ListMax || len(r.Unresolved) > ListMax || len(r.Key) != keyIDLen:
		return fmt.Errorf("%d repairs, %d unresolved ranges, key %q", len(r.Repairs), len(r.Unresolved), clip(r.Key))
	}
	return nil
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

func clip(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= textMax {
		return s
	}
	return strings.ToValidUTF8(s[:textMax-len("…")], "") + "…"
}
