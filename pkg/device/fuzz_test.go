package device

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzDecode: a request of any bytes is refused as malformed, or lies within what may be asked, and means what the kernel would have
// written for it.
func FuzzDecode(f *testing.F) {
	f.Add(header(opGetattr, 1))
	f.Add(ioRequest(opWrite, 1, 4096, 512, make([]byte, 512)))
	f.Add(ioRequest(opWrite, 1|uniqueResend, 0, 4096, bytes.Repeat([]byte{7}, 4096)))
	f.Add(ioRequest(opRead, 1, 4096, 512, nil))
	f.Add(fallocRequest(1, 0, 4096, fallocZeroRange))
	f.Add(setattrRequest(1, setattrSize, 1))
	f.Add(header(opInit, 1, make([]byte, initInSize)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			if !errors.Is(err, errMalformed) {
				t.Errorf("%x: %v", b, err)
			}
			return
		}
		checkMessage(t, b, m)
		again, err := decode(asSent(m, b))
		if err != nil || again.opcode != m.opcode || again.unique != m.unique || again.offset != m.offset || again.length != m.length ||
			again.mode != m.mode || again.valid != m.valid || again.size != m.size || !bytes.Equal(again.data, m.data) {
			t.Errorf("%x is %+v, and sent again %+v, %v", b, m, again, err)
		}
	})
}

// asSent is the request as the kernel writes it; where it has no body that is read, it is the one given.
func asSent(m message, b []byte) []byte {
	switch m.opcode {
	case opRead, opWrite:
		return ioRequest(m.opcode, m.unique, uint64(m.offset), uint32(m.length), m.data)
	case opFallocate:
		return fallocRequest(m.unique, uint64(m.offset), uint64(m.length), m.mode)
	case opSetattr:
		return setattrRequest(m.unique, m.valid, m.size)
	}
	return b
}

func checkMessage(t *testing.T, b []byte, m message) {
	switch m.opcode {
	case opRead, opWrite, opFallocate:
		if m.offset < 0 || m.length <= 0 || m.offset+m.length < 0 {
			t.Errorf("range %d+%d", m.offset, m.length)
		}
	}
	if m.opcode == opRead && m.length > maxWrite {
		t.Errorf("READ of %d", m.length)
	}
	if m.opcode == opWrite && (int64(len(m.data)) != m.length || len(b) != writeFront+len(m.data)) {
		t.Errorf("WRITE of %d with %d bytes in %d", m.length, len(m.data), len(b))
	}
}

// FuzzInit: whatever the kernel offers, nothing is accepted that it has not, and the answer is whole.
func FuzzInit(f *testing.F) {
	f.Add(uint64(2), uint32(7), uint32(45), uint32(1<<17), ^uint32(0), ^uint32(0), uint8(initInSize))
	f.Add(uint64(2), uint32(7), uint32(31), uint32(0), uint32(initAsyncDIO|initMaxPages), uint32(0), uint8(initInMin))
	f.Fuzz(func(t *testing.T, unique uint64, major, minor, readahead, flags, flags2 uint32, size uint8) {
		body := make([]byte, initInSize)
		for i, v := range []uint32{major, minor, readahead, flags, flags2} {
			order.PutUint32(body[4*i:], v)
		}
		body = body[:min(int(size), len(body))]
		k, err := decodeInit(header(opInit, unique, body...))
		if short := len(body) < initInMin; short != errors.Is(err, errMalformed) || !short && err != nil {
			t.Fatalf("%d bytes: %v", len(body), err)
		} else if short {
			return
		}
		out := putInitReply(make([]byte, 4096), k)
		if int(order.Uint32(out)) != len(out) || order.Uint64(out[8:]) != unique || unique != 0 && order.Uint32(out[4:]) != 0 {
			t.Errorf("the answer begins with %x", out[:outHeaderSize])
		}
		o := out[outHeaderSize:]
		if got := order.Uint32(o[12:]); got&^flags != 0 {
			t.Errorf("offered %#x, accepted %#x", flags, got)
		}
		if got := order.Uint32(o[32:]); got&^flags2 != 0 || got != 0 && flags&initExt == 0 {
			t.Errorf("offered %#x %#x, accepted %#x more", flags, flags2, got)
		}
	})
}
