package device

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestBufferSizes(t *testing.T) {
	for _, c := range []struct{ n, size int64 }{
		{1, 4096}, {4096, 4096}, {4097, 8192}, {65536, 65536}, {256 << 10, 256 << 10},
		{256<<10 + 1, maxWrite}, {512 << 10, maxWrite}, {maxWrite, maxWrite},
	} {
		var p buffers
		b, err := p.get(c.n)
		if err != nil {
			t.Fatal(err)
		}
		if sizeOf(c.n) != c.size || int64(len(b.mem)) != headroom+c.size {
			t.Errorf("%d bytes: %d, buffer of %d, want %d", c.n, sizeOf(c.n), len(b.mem)-headroom, c.size)
		}
		if misalignment(b.data(c.n)) != 0 {
			t.Errorf("%d bytes: data not aligned", c.n)
		}
		p.put(b)
		p.close()
	}
}

// Memory for large requests stays while it is used and goes when it is not.
func TestBuffersTrim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p buffers
		var held []*buffer
		for range 8 {
			b, err := p.get(maxWrite)
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, b)
		}
		for _, b := range held[:6] {
			p.put(b)
		}
		const each = headroom + maxWrite
		if n := p.mappedBytes(); n != 8*each {
			t.Errorf("%d bytes mapped", n)
		}
		time.Sleep(2*spareFor + time.Second)
		if n := p.mappedBytes(); n != 2*each {
			t.Errorf("%d bytes mapped when idle, 2 buffers are in use", n)
		}
		p.put(held[6])
		p.put(held[7])
		p.close()
		if n := p.mappedBytes(); n != 0 {
			t.Errorf("%d bytes mapped after close", n)
		}
	})
}
