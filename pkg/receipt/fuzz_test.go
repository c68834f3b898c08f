package receipt

import (
	"bytes"
	"errors"
	"path"
	"slices"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/vfs"
)

// FuzzDamagedReceipt changes one byte of a receipt: it is never taken for one, nor is the chain that it is in.
func FuzzDamagedReceipt(f *testing.F) {
	book := newBook(f)
	good := chain(f, book, 3)
	for _, at := range []uint{0, 1, 12, 40, 700, ^uint(0)} {
		f.Add(at, at, byte(1))
		f.Add(at+1, at, byte(0x20))
	}
	f.Fuzz(func(t *testing.T, which, at uint, change byte) {
		which %= uint(len(good))
		raw := bytes.Clone(good[which])
		raw[at%uint(len(raw))] ^= change
		_, err := book.Verify(raw)
		if change == 0 && err != nil || change != 0 && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnknownKey) && !errors.Is(err, ErrSignature) {
			t.Errorf("byte %d of receipt %d changed by %#x: %v", at%uint(len(raw)), which, change, err)
		}
		all := slices.Clone(good)
		all[which] = raw
		if breaks := book.VerifyChain(all); (len(breaks) == 0) != (change == 0) {
			t.Errorf("byte %d of receipt %d changed by %#x: the chain has breaks %v", at%uint(len(raw)), which, change, breaks)
		}
	})
}

// FuzzKeyFiles opens a keyring with a file of any content: it is refused as damaged, or it holds a key that signs what the next one that
// opens it believes.
func FuzzKeyFiles(f *testing.F) {
	disk := vfs.NewMem()
	keys, err := OpenKeyring(disk, "/keys")
	if err != nil {
		f.Fatal(err)
	}
	public := path.Join(publicDir, keys.Current()+fileSuffix)
	for _, name := range []string{signingFile, public} {
		raw, err := vfs.ReadFile(disk, path.Join("/keys", name), keyFileMax)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, name == public)
		f.Add(append(raw, " {}"...), name == public)
	}
	f.Add([]byte(`{"version":1,"seed":"`+hexOf(32)+`"}`), false)
	f.Fuzz(func(t *testing.T, raw []byte, isPublic bool) {
		name := signingFile
		if isPublic {
			name = public
		}
		disk := vfs.NewMem()
		put(t, disk, name, raw)
		k, err := OpenKeyring(disk, "/keys")
		if err != nil {
			if !errors.Is(err, ErrKeyFile) {
				t.Errorf("%s with %q: %v", name, raw, err)
			}
			return
		}
		receipt, _ := sign(t, NewBook(k, time.Now), barrier(5, nil), Facts{})
		after, err := OpenKeyring(disk, "/keys")
		if err != nil || after.Current() != k.Current() {
			t.Fatalf("%s with %q opens once: %v", name, raw, err)
		}
		if _, err := NewBook(after, time.Now).Verify(receipt); err != nil {
			t.Errorf("%s with %q: %v", name, raw, err)
		}
	})
}

// FuzzDamagedKeyFile changes one byte of the file of the key that signs: no other key ever takes its place.
func FuzzDamagedKeyFile(f *testing.F) {
	disk := vfs.NewMem()
	keys, err := OpenKeyring(disk, "/keys")
	if err != nil {
		f.Fatal(err)
	}
	good, err := vfs.ReadFile(disk, path.Join("/keys", signingFile), keyFileMax)
	if err != nil {
		f.Fatal(err)
	}
	for at := range uint(len(good)) {
		f.Add(at, byte(1))
	}
	f.Fuzz(func(t *testing.T, at uint, change byte) {
		raw := bytes.Clone(good)
		raw[at%uint(len(raw))] ^= change
		disk := vfs.NewMem()
		put(t, disk, signingFile, raw)
		k, err := OpenKeyring(disk, "/keys")
		if err != nil && !errors.Is(err, ErrKeyFile) || err == nil && k.Current() != keys.Current() {
			t.Errorf("byte %d changed by %#x: another key than %s, and %v", at%uint(len(raw)), change, keys.Current(), err)
		}
	})
}

func put(t *testing.T, disk vfs.FS, name string, raw []byte) {
	t.Helper()
	if err := errors.Join(disk.MkdirAll("/keys/"+publicDir), vfs.WriteFile(disk, path.Join("/keys", name), raw)); err != nil {
		t.Fatal(err)
	}
}

func hexOf(n int) string { return string(bytes.Repeat([]byte("a1"), n)) }
