package receipt

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"
	"syscall"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/vfs"
)

// Files of a keyring.
//
//	DIR/signing.json          {"version":1,"seed":HEX,"public":HEX}   the key that signs; secret. Without "public" in older files
//	DIR/public/KEYID.json     {"version":1,"public":HEX}              every key whose receipts are believed
const (
	signingFile  = "signing.json"
	publicDir    = "public"
	fileSuffix   = ".json"
	keyFileMax   = 4 << 10
	keyIDLen     = 16
	keyFormat    = 1
	publicKeyMax = 1024
)

// ErrKeyFile says that a file of the keyring cannot be read or trusted. It is never replaced by itself.
var ErrKeyFile = errors.New("damaged key file")

type keyFile struct {
	Version int             `json:"version"`
	Seed    engine.HexBytes `json:"seed,omitempty"`
	Public  engine.HexBytes `json:"public,omitempty"`
}

// Keyring holds the key that signs, and the public keys of all that ever signed here. Safe for concurrent use.
type Keyring struct {
	fsys vfs.FS
	dir  string

	mu      sync.RWMutex
	signing ed25519.PrivateKey
	public  map[string]ed25519.PublicKey
}

// KeyID names a public key: the first 8 bytes of its SHA-256, in hexadecimal.
func KeyID(public ed25519.PublicKey) string {
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:])[:keyIDLen]
}

// OpenKeyring loads the keyring in dir, or makes one with a new key. A key is durable, readable only by its owner,
// before it signs anything. A damaged file is ErrKeyFile and names it; it is never replaced.
func OpenKeyring(fsys vfs.FS, dir string) (*Keyring, error) {
	k := &Keyring{fsys: fsys, dir: dir, public: map[string]ed25519.PublicKey{}}
	if err := k.makeDirs(); err != nil {
		return nil, fmt.Errorf("keyring %s: %w", dir, err)
	}
	if err := k.loadPublic(); err != nil {
		return nil, err
	}
	err := k.loadSigning()
	if errors.Is(err, fs.ErrNotExist) {
		return k, k.Rotate()
	}
	if err != nil {
		return nil, err
	}
	// The public half is written first, so it is missing only where somebody took it away.
	return k, k.Trust(k.signing.Public().(ed25519.PublicKey))
}

// loadSigning has any 32 bytes for a seed: that they are the ones which were written, the public half tells.
func (k *Keyring) loadSigning() error {
	f, err := k.read(signingFile)
	switch {
	case err != nil:
		return err
	case len(f.Seed) != ed25519.SeedSize:
		return k.damaged(signingFile, "a seed of %d bytes", len(f.Seed))
	}
	private := ed25519.NewKeyFromSeed(f.Seed)
	if public := private.Public().(ed25519.PublicKey); len(f.Public) > 0 && !public.Equal(ed25519.PublicKey(f.Public)) {
		return k.damaged(signingFile, "the seed is that of key %s, the public half of %s", KeyID(public), KeyID(ed25519.PublicKey(f.Public)))
	}
	k.signing = private
	return nil
}

func (k *Keyring) makeDirs() error {
	if err := vfs.MakeDirs(k.fsys, path.Join(k.dir, publicDir)); err != nil {
		return err
	}
	return k.fsys.SyncDir(path.Join(k.dir, publicDir))
}

func (k *Keyring) loadPublic() error {
	names, err := k.fsys.ReadDir(path.Join(k.dir, publicDir))
	if err != nil {
		return fmt.Errorf("keyring %s: %w", k.dir, err)
	}
	if len(names) > publicKeyMax {
		return fmt.Errorf("keyring %s: %w: %d public keys, at most %d", k.dir, ErrKeyFile, len(names), publicKeyMax)
	}
	for _, n := range names {
		id, isKey := strings.CutSuffix(n.Name(), fileSuffix)
		if !isKey {
			continue // the rest of an interrupted write
		}
		if err := k.loadOne(id); err != nil {
			return err
		}
	}
	return nil
}

func (k *Keyring) loadOne(id string) error {
	name := path.Join(publicDir, id+fileSuffix)
	f, err := k.read(name)
	switch {
	case err != nil:
		return err
	case len(f.Public) != ed25519.PublicKeySize:
		return k.damaged(name, "a public key of %d bytes", len(f.Public))
	case KeyID(ed25519.PublicKey(f.Public)) != id:
		return k.damaged(name, "holds key %s", KeyID(ed25519.PublicKey(f.Public)))
	}
	k.public[id] = ed25519.PublicKey(f.Public)
	return nil
}

// read returns what the file says. fs.ErrNotExist where there is none.
func (k *Keyring) read(name string) (f keyFile, err error) {
	raw, err := vfs.ReadFile(k.fsys, path.Join(k.dir, name), keyFileMax)
	if errors.Is(err, syscall.EFBIG) {
		return f, k.damaged(name, "%w", err)
	}
	if err != nil {
		return f, fmt.Errorf("keyring: %w", err)
	}
	if err := strict(raw, &f); err != nil {
		return f, k.damaged(name, "%w", err)
	}
	if f.Version != keyFormat {
		return f, k.damaged(name, "version %d", f.Version)
	}
	return f, nil
}

func (k *Keyring) damaged(name, format string, args ...any) error {
	return fmt.Errorf("%w %s: %w", ErrKeyFile, path.Join(k.dir, name), fmt.Errorf(format, args...))
}

func (k *Keyring) write(name string, f keyFile) error {
	raw, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := vfs.WriteFile(k.fsys, path.Join(k.dir, name), raw); err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	return nil
}

// Rotate makes a new key that signs from now on. Receipts of the old one stay verifiable.
func (k *Keyring) Rotate() error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	// Public first: a crash in between leaves a key that never signs, not receipts that nobody can verify.
	if err := k.Trust(public); err != nil {
		return err
	}
	if err := k.write(signingFile, keyFile{Version: keyFormat, Seed: private.Seed(), Public: engine.HexBytes(public)}); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.signing = private
	return nil
}

// Trust makes receipts signed by the key verifiable here, durably.
func (k *Keyring) Trust(public ed25519.PublicKey) error {
	if len(public) != ed25519.PublicKeySize {
		return fmt.Errorf("%w: a public key of %d bytes", ErrKeyFile, len(public))
	}
	id := KeyID(public)
	k.mu.RLock()
	_, known := k.public[id]
	k.mu.RUnlock()
	if known {
		return nil
	}
	if err := k.write(path.Join(publicDir, id+fileSuffix), keyFile{Version: keyFormat, Public: engine.HexBytes(public)}); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.public[id] = public
	return nil
}

// Current is the ID of the key that signs.
func (k *Keyring) Current() string {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return KeyID(k.signing.Public().(ed25519.PublicKey))
}

// seal signs r with the key that r names, which is the current one unless it was rotated meanwhile.
func (k *Keyring) seal(r Receipt) ([]byte, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	r.Key = KeyID(k.signing.Public().(ed25519.PublicKey))
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return canonical(r, ed25519.Sign(k.signing, append([]byte(purpose), body...)))
}

func (k *Keyring) check(id string, s sealed) error {
	k.mu.RLock()
	public, known := k.public[id]
	k.mu.RUnlock()
	if !known {
		return fmt.Errorf("%w %s", ErrUnknownKey, id)
	}
	if !ed25519.Verify(public, append([]byte(purpose), s.Body...), s.Signature) {
		return fmt.Errorf("%w (key %s)", ErrSignature, id)
	}
	return nil
}
