package vfs

import (
	"math/bits"
	"sync"
	"unsafe"
)

// The pool keeps buffers of 4 KiB, 8 KiB and so on up to pooledMax; longer ones are rare enough to leave to the collector.
const (
	pooledMax   = 8 << 20
	bufferKinds = 12 // 4 KiB << 11 == pooledMax
)

// pools holds the first byte of each idle buffer: a pointer goes into an interface without an allocation, a slice does not.
var pools [bufferKinds]sync.Pool

// AlignedBuffer returns n zero bytes that begin at a multiple of Align, as Direct files demand.
func AlignedBuffer(n int) []byte {
	// The allocator aligns most of these sizes by itself; asking for room to shift would double the small ones.
	if b := make([]byte, n); aligned(b) {
		return b
	}
	b := make([]byte, n+Align)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (Align - 1))
	return b[skip : skip+n : skip+n]
}

// GetBuffer returns n bytes that begin at a multiple of Align. Their content is arbitrary. The caller owns them
// until PutBuffer, which it may leave out.
func GetBuffer(n int) []byte {
	if n <= 0 || n > pooledMax {
		return AlignedBuffer(max(n, 0))
	}
	kind := bufferKind(n)
	size := Align << kind
	if first, ok := pools[kind].Get().(*byte); ok {
		return unsafe.Slice(first, size)[:n]
	}
	return AlignedBuffer(size)[:n]
}

// PutBuffer gives back what GetBuffer returned, from its first byte; nobody may use it afterwards. Idle buffers are freed by the
// garbage collector. Other memory is ignored.
func PutBuffer(b []byte) {
	size := cap(b)
	if size < Align || size > pooledMax || size&(size-1) != 0 || !aligned(b) {
		return
	}
	pools[bufferKind(size)].Put(unsafe.SliceData(b))
}

// bufferKind is the index of the smallest pool whose buffers hold n bytes.
func bufferKind(n int) int { return bits.Len((uint(n) - 1) / Align) }

func aligned(b []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))&(Align-1) == 0
}
