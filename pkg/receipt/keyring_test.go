package receipt

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/vfs"
)

func openKeys(t *testing.T, fsys vfs.FS, dir string) *Keyring {
	t.Helper()
	k, err := OpenKeyring(fsys, dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeyringSurvives(t *testing.T) {
	disk := vfs.NewMem()
	k := openKeys(t, disk, "/keys")
	raw, _ := sign(t, NewBook(k, time.Now), barrier(5, nil), Facts{})
	after := openKeys(t, disk.CrashClone(nil), "/keys")
	if after.Current() != k.Current() {
		t.Errorf("key %s became %s in a power cut", k.Current(), after.Current())
	}
	if _, err := NewBook(after, time.Now).Verify(raw); err != nil {
		t.Error(err)
	}
}

// TestKeyringPowerCuts cuts the power after every call of the making of a keyring and of a rotation: what was signed
// with a key that was in use can be verified.
func TestKeyringPowerCuts(t *testing.T) {
	for n := int64(1); n < 40; n++ {
		disk := vfs.NewMem()
		k, err := OpenKeyring(vfs.Faulty(disk, vfs.FailFrom(n, errors.New("power"))), "/keys")
		var raws [][]byte
		if err == nil {
			raw, _ := sign(t, NewBook(k, time.Now), barrier(5, nil), Facts{})
			raws = append(raws, raw)
			_ = k.Rotate()
			raw, _ = sign(t, NewBook(k, time.Now), barrier(7, Hash(raw)), Facts{})
			raws = append(raws, raw)
		}
		after := openKeys(t, disk.CrashClone(rand.New(rand.NewPCG(1, uint64(n)))), "/keys")
		if breaks := NewBook(after, time.Now).VerifyChain(raws); len(breaks) > 0 {
			t.Fatalf("call %d: %+v", n, breaks)
		}
	}
}

func TestRotation(t *testing.T) {
	disk := vfs.NewMem()
	k := openKeys(t, disk, "/keys")
	book := NewBook(k, time.Now)
	first, r1 := sign(t, book, barrier(5, nil), Facts{})
	if err := k.Rotate(); err != nil {
		t.Fatal(err)
	}
	second, r2 := sign(t, book, barrier(7, Hash(first)), Facts{})
	if r1.Key == r2.Key {
		t.Fatal("the same key after a rotation")
	}
	after := NewBook(openKeys(t, disk, "/keys"), time.Now)
	if breaks := after.VerifyChain([][]byte{first, second}); len(breaks) > 0 {
		t.Errorf("%+v", breaks)
	}
}

func TestDamagedKeyIsNeverReplaced(t *testing.T) {
	for _, c := range []struct{ name, content string }{
		{"signing.json", "{"},
		{"signing.json", `{"version":2,"seed":"00"}`},
		{"signing.json", `{"version":1,"seed":"00"}`},
		{"signing.json", `{"version":1,"seed":"","extra":1}`},
		{"signing.json", strings.Repeat("x", keyFileMax+1)},
		{"public/0000000000000000.json", `{"version":1,"public":"` + strings.Repeat("00", 32) + `"}`},
		{"public/0000000000000000.json", "x"},
	} {
		disk := vfs.NewMem()
		openKeys(t, disk, "/keys")
		file := filepath.Join("/keys", c.name)
		if err := vfs.WriteFile(disk, file, []byte(c.content)); err != nil {
			t.Fatal(err)
		}
		_, err := OpenKeyring(disk, "/keys")
		if err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s with %.40q: %v", c.name, c.content, err)
		}
		if raw, _ := vfs.ReadFile(disk, file, 1<<20); string(raw) != c.content {
			t.Errorf("%s was replaced by %q", c.name, raw)
		}
	}
}

func TestKeyFilesAreSecret(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	openKeys(t, vfs.OS(), dir)
	for name, want := range map[string]os.FileMode{".": 0o700, "signing.json": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode().Perm(), want)
		}
	}
}

func TestTrust(t *testing.T) {
	node, controller := openKeys(t, vfs.NewMem(), "/keys"), openKeys(t, vfs.NewMem(), "/keys")
	raw, r := sign(t, NewBook(node, time.Now), barrier(5, nil), Facts{})
	book := NewBook(controller, time.Now)
	if _, err := book.Verify(raw); !errors.Is(err, ErrUnknownKey) {
		t.Fatal(err)
	}
	if err := controller.Trust(node.public[r.Key]); err != nil {
		t.Fatal(err)
	}
	if _, err := book.Verify(raw); err != nil {
		t.Error(err)
	}
	if err := controller.Trust(nil); !errors.Is(err, ErrKeyFile) {
		t.Errorf("no key at all: %v", err)
	}
}
