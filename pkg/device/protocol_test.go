package device

import (
	"bytes"
	"errors"
	"math"
	"testing"
)

// message builders, in the kernel's place

func header(opcode uint32, unique uint64, body ...byte) []byte {
	b := make([]byte, inHeaderSize, inHeaderSize+len(body))
	b = append(b, body...)
	order.PutUint32(b, uint32(len(b)))
	order.PutUint32(b[4:], opcode)
	order.PutUint64(b[8:], unique)
	order.PutUint64(b[16:], rootInode)
	return b
}

func ioRequest(opcode uint32, unique, off uint64, size uint32, data []byte) []byte {
	body := make([]byte, ioInSize, ioInSize+len(data))
	order.PutUint64(body[8:], off)
	order.PutUint32(body[16:], size)
	return header(opcode, unique, append(body, data...)...)
}

func fallocRequest(unique, off, n uint64, mode uint32) []byte {
	body := make([]byte, fallocInSize)
	order.PutUint64(body[8:], off)
	order.PutUint64(body[16:], n)
	order.PutUint32(body[24:], mode)
	return header(opFallocate, unique, body...)
}

func setattrRequest(unique uint64, valid uint32, size uint64) []byte {
	body := make([]byte, setattrInSize)
	order.PutUint32(body, valid)
	order.PutUint64(body[16:], size)
	return header(opSetattr, unique, body...)
}

func TestDecode(t *testing.T) {
	data := bytes.Repeat([]byte{7}, 512)
	w, err := decode(ioRequest(opWrite, 5|uniqueResend, 1024, 512, data))
	if err != nil || w.offset != 1024 || w.length != 512 || !bytes.Equal(w.data, data) || !w.resent() {
		t.Errorf("WRITE: %+v, %v", w, err)
	}
	r, err := decode(ioRequest(opRead, 6, 4096, maxWrite, nil))
	if err != nil || r.offset != 4096 || r.length != maxWrite || r.data != nil || r.resent() {
		t.Errorf("READ: %+v, %v", r, err)
	}
	f, err := decode(fallocRequest(8, 512, 1<<40, fallocPunchHole|fallocKeepSize))
	if err != nil || f.offset != 512 || f.length != 1<<40 || f.mode != fallocPunchHole|fallocKeepSize {
		t.Errorf("FALLOCATE: %+v, %v", f, err)
	}
	s, err := decode(setattrRequest(9, setattrSize, 77))
	if err != nil || s.valid != setattrSize || s.size != 77 {
		t.Errorf("SETATTR: %+v, %v", s, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	lying := header(opGetattr, 1)
	order.PutUint32(lying, 41)
	for name, b := range map[string][]byte{
		"nothing":             nil,
		"half a header":       header(opRead, 1)[:39],
		"another length":      lying,
		"READ without body":   header(opRead, 1, make([]byte, 39)...),
		"READ of nothing":     ioRequest(opRead, 1, 0, 0, nil),
		"READ of too much":    ioRequest(opRead, 1, 0, maxWrite+1, nil),
		"READ behind the end": ioRequest(opRead, 1, math.MaxInt64, 1, nil),
		"READ at -1":          ioRequest(opRead, 1, math.MaxUint64, 1, nil),
		"WRITE of less":       ioRequest(opWrite, 1, 0, 4096, make([]byte, 4095)),
		"WRITE of more":       ioRequest(opWrite, 1, 0, 4096, make([]byte, 4097)),
		"FALLOCATE cut":       header(opFallocate, 1, make([]byte, 31)...),
		"FALLOCATE nothing":   fallocRequest(1, 0, 0, fallocPunchHole),
		"FALLOCATE overflow":  fallocRequest(1, 1, math.MaxUint64, fallocPunchHole),
		"SETATTR cut":         header(opSetattr, 1, make([]byte, 87)...),
	} {
		if m, err := decode(b); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

func TestInit(t *testing.T) {
	body := make([]byte, initInSize)
	for i, v := range []uint32{7, 45, 1 << 17, math.MaxUint32, math.MaxUint32} {
		order.PutUint32(body[4*i:], v)
	}
	k, err := decodeInit(header(opInit, 2, body...))
	if err != nil || k.unique != 2 || k.major != 7 || k.minor != 45 || k.flags2 != math.MaxUint32 {
		t.Fatalf("%+v, %v", k, err)
	}
	out := putInitReply(make([]byte, 4096), k)
	if n := order.Uint32(out); int(n) != len(out) || n != outHeaderSize+initOutSize {
		t.Errorf("reply says %d bytes, has %d", n, len(out))
	}
	if f := order.Uint32(out[outHeaderSize+32:]); f != init2HasResend {
		t.Errorf("second flags %#x", f)
	}
	old := k
	old.flags, old.flags2 = initMaxPages, 0
	if f := order.Uint32(putInitReply(make([]byte, 4096), old)[outHeaderSize+12:]); f != initMaxPages {
		t.Errorf("accepted flags %#x that were not offered", f)
	}
	if _, err := decodeInit(header(opGetattr, 2, body...)); !errors.Is(err, errMalformed) {
		t.Errorf("GETATTR taken for INIT: %v", err)
	}
}
