package vfs

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What io_uring_setup takes and the kernel fills in, of linux/io_uring.h.
const (
	ringSetupCQSize    = 1 << 3
	ringSetupSubmitAll = 1 << 7 // one bad entry does not stop the others
	ringSetupFlags     = ringSetupCQSize | ringSetupSubmitAll

	ringNop   uint8 = 0
	ringRead  uint8 = 22
	ringWrite uint8 = 23

	ringFeatureSingleMap = 1 << 0
	ringFeatureNoDrop    = 1 << 1

	ringEnterGetEvents  = 1 << 0
	ringRegisterEventFD = 4
	ringEventFDDisabled = 1 << 0 // in the flags of the completion queue: do not signal

	ringOffsetQueues  = 0
	ringOffsetEntries = 0x10000000
)

type ringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sq                                                                     sqOffsets
	cq                                                                     cqOffsets
}

type sqOffsets struct {
	head, tail, mask, entries, flags, dropped, array, _ uint32
	_                                                   uint64
}

type cqOffsets struct {
	head, tail, mask, entries, overflow, cqes, flags, _ uint32
	_                                                   uint64
}

// sqe is a request.
type sqe struct {
	opcode, flags1 uint8
	priority       uint16
	fd             int32
	off, addr      uint64
	len, flags2    uint32
	userData       uint64
	_              [3]uint64
}

// cqe is its completion: result is what the system call would return, or -errno.
type cqe struct {
	userData uint64
	result   int32
	_        uint32
}

// ringQueue are the indexes of a queue in memory shared with the kernel. They count up and are masked when used.
type ringQueue struct {
	head, tail *uint32
	mask       uint32
}

// mapQueues maps what the kernel shares. The mappings stay until the process ends.
func (r *ring) mapQueues(p *ringParams) error {
	if p.features&ringFeatureSingleMap == 0 || p.features&ringFeatureNoDrop == 0 {
		return os.NewSyscallError("io_uring_setup", unix.ENOSYS) // a kernel before 5.5
	}
	size := max(int(p.sq.array+4*p.sqEntries), int(p.cq.cqes)+int(p.cqEntries)*int(unsafe.Sizeof(cqe{})))
	queues, err := r.mmap(ringOffsetQueues, size)
	if err != nil {
		return err
	}
	entries, err := r.mmap(ringOffsetEntries, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})))
	if err != nil {
		return err
	}
	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&queues[off])) }
	r.sq = ringQueue{head: word(p.sq.head), tail: word(p.sq.tail), mask: *word(p.sq.mask)}
	r.cq = ringQueue{head: word(p.cq.head), tail: word(p.cq.tail), mask: *word(p.cq.mask)}
	r.cqFlags = word(p.cq.flags)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&entries[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&queues[p.cq.cqes])), p.cqEntries)
	// Entries are used in turn, so entry i is always at index i.
	for i := range p.sqEntries {
		*word(p.sq.array + 4*i) = i
	}
	return nil
}

func (r *ring) mmap(offset int64, size int) ([]byte, error) {
	p, err := unix.Mmap(r.fd, offset, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	return p, os.NewSyscallError("mmap", err)
}
