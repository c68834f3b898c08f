package device

import (
	"math/bits"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// headroom precedes the data of every buffer, so that a header and its page-aligned data are one range of memory:
// one read(2) takes a request, one write(2) answers it.
const headroom = 4096

const (
	smallestShift = 12 // 4 KiB
	heapShift     = 18 // buffers up to 256 KiB live on the heap
	heapClasses   = heapShift - smallestShift + 1
	bigClass      = heapClasses
)

// spareFor is how long a big buffer that nobody needs is kept.
const spareFor = 5 * time.Second

// buffer is memory for the data of one request. mem[headroom:] is aligned to 4096 bytes.
type buffer struct {
	mem   []byte
	class int
}

func (b *buffer) data(n int64) []byte { return b.mem[headroom : headroom+n] }

// front returns the n bytes before the data and the data itself: where a message with that data is built or read.
func (b *buffer) front(n int) []byte { return b.mem[headroom-n:] }

// buffers is a pool of them in sizes of powers of two. Those of the largest size serve as targets when requests are read:
// they are mapped apart from the heap, with every page present. Where the kernel meets an absent page while it copies a
// request and the server is being killed, it breaks off and the request ends in EIO instead of being sent again.
type buffers struct {
	heap [heapClasses]sync.Pool

	mu     sync.Mutex
	big    []*buffer
	unused int // least length of big since the last trim
	timer  *time.Timer
	mapped int // big buffers that exist
}

func classOf(n int64) int {
	if n <= 1<<smallestShift {
		return 0
	}
	return min(bits.Len64(uint64(n-1))-smallestShift, bigClass)
}

// sizeOf is what a buffer for n bytes of data takes up, headroom aside.
func sizeOf(n int64) int64 {
	if c := classOf(n); c != bigClass {
		return 1 << (smallestShift + c)
	}
	return maxWrite
}

// get returns a buffer for n bytes of data, at most maxWrite. Its content is arbitrary.
func (p *buffers) get(n int64) (*buffer, error) {
	c := classOf(n)
	if c == bigClass {
		return p.getBig()
	}
	if b, ok := p.heap[c].Get().(*buffer); ok {
		return b, nil
	}
	return &buffer{mem: aligned(headroom + 1<<(smallestShift+c)), class: c}, nil
}

// put gives b back. The caller has no reference to it afterwards.
func (p *buffers) put(b *buffer) {
	if b.class != bigClass {
		p.heap[b.class].Put(b)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.big = append(p.big, b)
	if p.timer == nil {
		p.timer = time.AfterFunc(spareFor, p.trim)
	}
}

func (p *buffers) getBig() (*buffer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.big); n > 0 {
		b := p.big[n-1]
		p.big = p.big[:n-1]
		p.unused = min(p.unused, n-1)
		return b, nil
	}
	mem, err := mapPresent(headroom + maxWrite)
	if err != nil {
		return nil, err
	}
	p.mapped++
	return &buffer{mem: mem, class: bigClass}, nil
}

// trim unmaps the big buffers that nobody needed since the last trim.
func (p *buffers) trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.release(p.unused)
	p.unused = len(p.big)
	p.timer = nil
	if len(p.big) > 0 {
		p.timer = time.AfterFunc(spareFor, p.trim)
	}
}

// close unmaps all spare buffers. None is in use.
func (p *buffers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
	}
	p.release(len(p.big))
	p.unused = 0 // a trim may be waiting for the lock
}

func (p *buffers) mappedBytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int64(p.mapped) * (headroom + maxWrite)
}

func (p *buffers) release(n int) {
	for _, b := range p.big[:n] {
		_ = unix.Munmap(b.mem) // fails only for what was never mapped
	}
	p.mapped -= n
	p.big = append(p.big[:0], p.big[n:]...)
}

// mapPresent maps n bytes and makes every page present. Huge pages are declined and the memory is locked where
// permitted, since merging or swapping pages makes them absent for a moment.
func mapPresent(n int) ([]byte, error) {
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE) // fails on kernels without huge pages
	_ = unix.Mlock(mem)                         // fails beyond RLIMIT_MEMLOCK
	for i := 0; i < n; i += 4096 {
		mem[i] = 0
	}
	return mem, nil
}

// aligned allocates n bytes that start at a multiple of 4096.
func aligned(n int) []byte {
	if b := make([]byte, n); misalignment(b) == 0 {
		return b
	}
	b := make([]byte, n+4096)
	if m := misalignment(b); m != 0 {
		b = b[4096-m:]
	}
	return b[:n:n]
}

func misalignment(b []byte) int { return int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) % 4096) }
