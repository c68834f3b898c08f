package digest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"
)

func testKey(n byte) (k Key) {
	for i := range k {
		k[i] = byte(i) * n
	}
	return k
}

func randomBlock(rng *rand.Rand) []byte {
	p := make([]byte, BlockSize)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// The bytes on the disk: a change here makes every replica that exists unreadable.
func TestFormatIsPinned(t *testing.T) {
	h := NewHasher(testKey(7))
	p := make([]byte, BlockSize)
	for i := range p {
		p[i] = byte(i * i)
	}
	sum := Sum{}
	h.Add(&sum, h.Block(12345, p))
	entry := make([]byte, EntrySize)
	Encode(entry, 12345, Entry{Hash: h.Block(12345, p), Version: Version{Epoch: 3, Sequence: 1 << 40}})
	got := fmt.Sprintf("%s\n%s\n%x", h.Block(12345, p), sum, entry)
	want := "c849399ddd843356673a494cad788cdb\n" +
		"f9fca9aac210d10d0d057315c0b57512d3b08582685059ffd4438e59b9f3d5d6\n" +
		"c849399ddd843356673a494cad788cdb00000000000100000300000001b2570b"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestBlock(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	h, other := NewHasher(testKey(1)), NewHasher(testKey(2))
	p := randomBlock(rng)
	if again := NewHasher(testKey(1)); h.Block(5, p) != again.Block(5, bytes.Clone(p)) {
		t.Error("the same block at the same place has two hashes")
	}
	if h.Block(5, p) == h.Block(6, p) {
		t.Error("a block hashes the same at another place")
	}
	if h.Block(5, p) == other.Block(5, p) {
		t.Error("a block hashes the same under another key")
	}
	if !h.Block(5, make([]byte, BlockSize)).IsZero() {
		t.Error("a block of zeros has a hash that is not zero")
	}
	for range 1000 {
		q := append([]byte(nil), p...)
		q[rng.IntN(len(q))] ^= 1 << rng.IntN(8)
		if h.Block(5, p) == h.Block(5, q) {
			t.Fatal("one flipped bit is not seen")
		}
	}
	for i := range BlockSize {
		q := make([]byte, BlockSize)
		q[i] = 1
		if h.Block(5, q).IsZero() {
			t.Fatalf("a block with byte %d set passes for zeros", i)
		}
	}
}

func TestSeedsDiffer(t *testing.T) {
	h := NewHasher(testKey(3))
	seen := map[uint64]int64{}
	for i := range int64(1 << 16) {
		s := h.seedOf(uint64(i))
		if j, ok := seen[s]; ok {
			t.Fatalf("blocks %d and %d share a seed", i, j)
		}
		seen[s] = i
	}
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 7, 512, BlockSize - 1, BlockSize, BlockSize + 1, 3 * BlockSize} {
		p := make([]byte, n)
		if !IsZero(p) {
			t.Errorf("%d zeros are not zero", n)
		}
		for i := range p {
			p[i] = 0x80
			if IsZero(p) {
				t.Fatalf("byte %d of %d is not seen", i, n)
			}
			p[i] = 0
		}
	}
}

func TestKeyDoesNotPrint(t *testing.T) {
	k := testKey(9)
	j, err := json.Marshal(struct{ Key Key }{k})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%x %v %+v %#v %s %d", k, k, struct{ K Key }{k}, k, k, k), string(j)} {
		for _, secret := range []string{"9", "12", "0x"} {
			if strings.Contains(s, secret) {
				t.Errorf("the key shows in %q", s)
			}
		}
	}
}

func TestNewKey(t *testing.T) {
	a, errA := NewKey()
	b, errB := NewKey()
	if errA != nil || errB != nil || a == b || a == (Key{}) {
		t.Errorf("keys are not random: %v %v", errA, errB)
	}
}

// big256 is the value of s, by other arithmetic than the code's.
func big256(s Sum) *big.Int {
	p := s.Bytes()
	for i, j := 0, len(p)-1; i < j; i, j = i+1, j-1 {
		p[i], p[j] = p[j], p[i]
	}
	return new(big.Int).SetBytes(p[:])
}

func randomSum(rng *rand.Rand) (s Sum) {
	for i := range s {
		s[i] = rng.Uint64()
		if rng.IntN(3) == 0 {
			s[i] = -uint64(rng.IntN(2)) // carries and borrows
		}
	}
	return s
}

func TestSumIsArithmeticModulo2To256(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	mod := new(big.Int).Lsh(big.NewInt(1), 256)
	for range 10000 {
		a, b := randomSum(rng), randomSum(rng)
		plus := new(big.Int).Add(big256(a), big256(b))
		if big256(a.Plus(b)).Cmp(plus.Mod(plus, mod)) != 0 {
			t.Fatalf("%s + %s = %s", a, b, a.Plus(b))
		}
		minus := new(big.Int).Sub(big256(a), big256(b))
		if big256(a.Minus(b)).Cmp(minus.Mod(minus, mod)) != 0 {
			t.Fatalf("%s - %s = %s", a, b, a.Minus(b))
		}
		p := a.Bytes()
		if SumOf(p[:]) != a {
			t.Fatalf("%s does not survive its bytes", a)
		}
	}
}

func TestSumDoesNotDependOnOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	h := NewHasher(testKey(4))
	hashes := make([]Hash, 500)
	for i := range hashes {
		for j := range hashes[i] {
			hashes[i][j] = byte(rng.Uint32())
		}
	}
	hashes[7] = Hash{}
	var want Sum
	for _, x := range hashes {
		h.Add(&want, x)
	}
	var got Sum
	extra := Hash{1, 2, 3}
	h.Add(&got, extra)
	for _, i := range rng.Perm(len(hashes)) {
		h.Add(&got, hashes[i])
	}
	if got == want {
		t.Error("an added hash is not seen")
	}
	h.Sub(&got, extra)
	if got != want {
		t.Errorf("another order: %s, want %s", got, want)
	}
	for _, x := range hashes {
		h.Sub(&got, x)
	}
	if !got.IsZero() {
		t.Errorf("all taken away leaves %s", got)
	}
}

func TestZeroHashAddsNothing(t *testing.T) {
	h := NewHasher(testKey(5))
	s := Sum{1, 2, 3, 4}
	h.Add(&s, Hash{})
	h.Sub(&s, Hash{})
	if s != (Sum{1, 2, 3, 4}) {
		t.Errorf("the zero hash changed the sum to %s", s)
	}
}

func TestNothingAllocates(t *testing.T) {
	h := NewHasher(testKey(6))
	p := randomBlock(rand.New(rand.NewPCG(4, 4)))
	entry := make([]byte, EntrySize)
	var s Sum
	n := testing.AllocsPerRun(100, func() {
		hash := h.Block(9, p)
		h.Add(&s, hash)
		Encode(entry, 9, Entry{Hash: hash, Version: Version{1, 2}})
		e, ok := Decode(entry, 9)
		if !ok {
			t.Error("an entry does not decode")
		}
		h.Sub(&s, e.Hash)
	})
	if n != 0 {
		t.Errorf("%v allocations for each block", n)
	}
}

func BenchmarkBlock(b *testing.B) {
	h, p := NewHasher(testKey(1)), randomBlock(rand.New(rand.NewPCG(5, 5)))
	p[0] = 0 // the check for zeros has to look further
	b.SetBytes(BlockSize)
	for i := 0; b.Loop(); i++ {
		h.Block(int64(i), p)
	}
}

func BenchmarkZeroBlock(b *testing.B) {
	h, p := NewHasher(testKey(1)), make([]byte, BlockSize)
	b.SetBytes(BlockSize)
	for i := 0; b.Loop(); i++ {
		h.Block(int64(i), p)
	}
}

func BenchmarkAdd(b *testing.B) {
	h, x := NewHasher(testKey(1)), Hash{1, 2, 3}
	var s Sum
	for b.Loop() {
		h.Add(&s, x)
	}
}

func BenchmarkEncode(b *testing.B) {
	p := make([]byte, EntrySize)
	for i := 0; b.Loop(); i++ {
		Encode(p, int64(i), Entry{Hash: Hash{1}, Version: Version{1, uint64(i)}})
	}
}
