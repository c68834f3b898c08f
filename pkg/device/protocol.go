package device

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// The part of the FUSE protocol (Linux include/uapi/linux/fuse.h, version 7.31 and later) that one regular file needs
// which is the root of its file system. All numbers are in the byte order of the machine.

// Opcodes that occur.
const (
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opFlush       = 25
	opInit        = 26
	opAccess      = 34
	opInterrupt   = 36
	opDestroy     = 38
	opBatchForget = 42
	opFallocate   = 43
)

// Codes of notifications, sent in place of an errno with unique 0.
const (
	notifyInvalInode = 2
	notifyResend     = 7
)

// Flags of INIT. Those of the second word are its bits 32 and up.
const (
	initAsyncRead = 1 << 0
	initBigWrites = 1 << 5
	initAsyncDIO  = 1 << 15
	initMaxPages  = 1 << 22
	initExt       = 1 << 30

	init2HasResend = 1 << 7
)

const (
	openDirectIO             = 1 << 0
	openParallelDirectWrites = 1 << 6

	setattrSize = 1 << 3

	fallocKeepSize  = 0x01
	fallocPunchHole = 0x02
	fallocZeroRange = 0x10

	uniqueResend = uint64(1) << 63 // set in the unique of a request that the kernel sends again

	rootInode = 1
)

// Sizes in bytes of what crosses the channel.
const (
	inHeaderSize  = 40
	outHeaderSize = 16
	ioInSize      = 40 // read_in and write_in, alike in all fields used here
	fallocInSize  = 32
	setattrInSize = 88
	initInMin     = 16 // before 7.36
	initInSize    = 64
	initOutSize   = 64
	attrOutSize   = 104
	openOutSize   = 16
	statfsOutSize = 80

	writeFront = inHeaderSize + ioInSize // what precedes the data of a WRITE

	maxWrite = 1 << 20 // the largest request, in bytes
	maxPages = 256     // the same in pages of 4096
)

// attrForever is how long, in seconds, the kernel may keep the file's attributes. Loop asks for them in its status
// call, which must answer where no server does. Whoever wants the kernel to look again sends notifyInvalInode.
const attrForever = 1 << 31

var order = binary.NativeEndian

// errMalformed says that a message breaks the protocol.
var errMalformed = errors.New("malformed request")

// message is one decoded request. Which fields are set depends on opcode.
type message struct {
	opcode uint32
	unique uint64
	node   uint64
	offset int64  // READ, WRITE, FALLOCATE
	length int64  // READ, WRITE: 1 to maxWrite; FALLOCATE: above 0. offset+length does not overflow.
	mode   uint32 // FALLOCATE
	valid  uint32 // SETATTR
	size   uint64 // SETATTR
	data   []byte // WRITE: length bytes within the decoded slice
}

// resent says that the kernel sent the request before, to a server that did not answer.
func (m *message) resent() bool { return m.unique&uniqueResend != 0 }

// decode reads one request. Where it fails with a unique that is not 0, the request can still be answered with an errno.
func decode(b []byte) (message, error) {
	if len(b) < inHeaderSize {
		return message{}, fmt.Errorf("%w: %d bytes, a header has %d", errMalformed, len(b), inHeaderSize)
	}
	if n := order.Uint32(b); uint64(n) != uint64(len(b)) {
		return message{}, fmt.Errorf("%w: says %d bytes, has %d", errMalformed, n, len(b))
	}
	m := message{opcode: order.Uint32(b[4:]), unique: order.Uint64(b[8:]), node: order.Uint64(b[16:])}
	return m, m.decodeBody(b[inHeaderSize:])
}

func (m *message) decodeBody(b []byte) error {
	if m.opcode == opForget || m.opcode == opBatchForget {
		return nil // name no inode we use, and want no answer
	}
	switch m.opcode {
	case opRead, opWrite:
		return m.decodeIO(b)
	case opFallocate:
		return m.decodeFallocate(b)
	case opSetattr:
		return m.decodeSetattr(b)
	}
	return nil
}

func (m *message) decodeIO(b []byte) error {
	if len(b) < ioInSize {
		return m.short(b, ioInSize)
	}
	size := order.Uint32(b[16:])
	if size == 0 || size > maxWrite {
		return fmt.Errorf("%w: opcode %d of %d bytes", errMalformed, m.opcode, size)
	}
	if m.opcode == opWrite {
		if uint64(len(b)-ioInSize) != uint64(size) {
			return fmt.Errorf("%w: WRITE of %d bytes carries %d", errMalformed, size, len(b)-ioInSize)
		}
		m.data = b[ioInSize:]
	}
	return m.setRange(order.Uint64(b[8:]), uint64(size))
}

func (m *message) decodeFallocate(b []byte) error {
	if len(b) < fallocInSize {
		return m.short(b, fallocInSize)
	}
	m.mode = order.Uint32(b[24:])
	return m.setRange(order.Uint64(b[8:]), order.Uint64(b[16:]))
}

func (m *message) decodeSetattr(b []byte) error {
	if len(b) < setattrInSize {
		return m.short(b, setattrInSize)
	}
	m.valid, m.size = order.Uint32(b), order.Uint64(b[16:])
	return nil
}

func (m *message) setRange(off, n uint64) error {
	if off > math.MaxInt64 || n == 0 || n > math.MaxInt64-off {
		return fmt.Errorf("%w: opcode %d at %d for %d bytes", errMalformed, m.opcode, off, n)
	}
	m.offset, m.length = int64(off), int64(n)
	return nil
}

func (m *message) short(b []byte, want int) error {
	return fmt.Errorf("%w: body of opcode %d has %d bytes, want %d", errMalformed, m.opcode, len(b), want)
}

// kernelInit is what the kernel offers in INIT.
type kernelInit struct {
	unique                     uint64
	major, minor, maxReadahead uint32
	flags, flags2              uint32
}

func decodeInit(b []byte) (kernelInit, error) {
	m, err := decode(b)
	if err != nil {
		return kernelInit{}, err
	}
	body := b[inHeaderSize:]
	if m.opcode != opInit || len(body) < initInMin {
		return kernelInit{}, fmt.Errorf("%w: want INIT, got opcode %d with %d bytes", errMalformed, m.opcode, len(body))
	}
	k := kernelInit{unique: m.unique, major: order.Uint32(body), minor: order.Uint32(body[4:]),
		maxReadahead: order.Uint32(body[8:]), flags: order.Uint32(body[12:])}
	if k.flags&initExt != 0 && len(body) >= initInSize {
		k.flags2 = order.Uint32(body[16:])
	}
	return k, nil
}

// putInitReply answers INIT into b, which has room for outHeaderSize+initOutSize bytes.
func putInitReply(b []byte, k kernelInit) []byte {
	b = putHeader(b, k.unique, 0, initOutSize)
	o := b[outHeaderSize:]
	clear(o)
	order.PutUint32(o, 7)
	order.PutUint32(o[4:], k.minor)
	order.PutUint32(o[8:], k.maxReadahead)
	order.PutUint32(o[12:], (initAsyncRead|initBigWrites|initAsyncDIO|initMaxPages|initExt)&k.flags)
	order.PutUint16(o[16:], maxBackground)
	order.PutUint16(o[18:], maxBackground*3/4)
	order.PutUint32(o[20:], maxWrite)
	order.PutUint32(o[24:], 1) // time granularity in ns
	order.PutUint16(o[28:], maxPages)
	order.PutUint32(o[32:], init2HasResend&k.flags2)
	return b
}

// putHeader starts a reply in b and returns it cut to the header and the body's size. errno is positive, or the code of a
// notification where unique is 0.
func putHeader(b []byte, unique uint64, errno int32, body int) []byte {
	b = b[:outHeaderSize+body]
	order.PutUint32(b, uint32(len(b)))
	code := -errno
	if unique == 0 {
		code = errno
	}
	order.PutUint32(b[4:], uint32(code))
	order.PutUint64(b[8:], unique)
	return b
}

func putAttr(o []byte, size int64) {
	clear(o[:attrOutSize])
	order.PutUint64(o, attrForever)
	a := o[16:]
	order.PutUint64(a, rootInode)
	order.PutUint64(a[8:], uint64(size))
	order.PutUint64(a[16:], uint64(size/512))
	order.PutUint32(a[60:], 0o100600) // a regular file
	order.PutUint32(a[64:], 1)        // links
	order.PutUint32(a[80:], blockSizeMax)
}

func putOpen(o []byte) {
	clear(o[:openOutSize])
	order.PutUint64(o, 1)
	order.PutUint32(o[8:], openDirectIO|openParallelDirectWrites)
}

// putStatfs tells the block size, which loop takes as granularity of discards.
func putStatfs(o []byte, size int64) {
	clear(o[:statfsOutSize])
	order.PutUint64(o, uint64(size/blockSizeMax))
	order.PutUint32(o[40:], blockSizeMax)
	order.PutUint32(o[44:], 255) // longest name
	order.PutUint32(o[48:], blockSizeMax)
}
