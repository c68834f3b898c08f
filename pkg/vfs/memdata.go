package vfs

import (
	"maps"
	"slices"
)

// sector is what a disk writes whole or not at all, in bytes.
const sector = 512

// page is the unit of allocation. A page is never altered once it is in a map, so copies of a memData share them.
type page [Align]byte

// memData is the content of a file: its pages by number; those that are missing are holes.
type memData struct {
	size   int64
	pages  map[int64]*page
	order  []int64 // the page numbers, sorted; nil where not known
	shared bool    // another memData has the same map: it is copied before it is altered
}

// dataChange is a write (data is set), a punch or a truncation.
type dataChange struct {
	off   int64 // of a truncation: the new size
	n     int64 // bytes written or punched
	data  []byte
	trim  bool   // a truncation
	order uint64 // among all changes of the disk
}

func (d *memData) allocated() int64 { return int64(len(d.pages)) * Align }

// clone returns the same content; each may be altered by itself. It costs nothing before that.
func (d *memData) clone() memData {
	if !d.shared { // else nothing is written: an image is cloned by many at once
		d.shared = true
	}
	return *d
}

// own makes the map one that nobody else has.
func (d *memData) own() {
	if d.shared {
		d.pages, d.shared = maps.Clone(d.pages), false
	}
	if d.pages == nil {
		d.pages = map[int64]*page{}
	}
}

func (d *memData) readAt(p []byte, off int64) {
	if len(d.pages) < len(p)/Align {
		d.readSparse(p, off)
		return
	}
	for len(p) > 0 {
		within := off % Align
		n := min(int64(len(p)), Align-within)
		if pg := d.pages[off/Align]; pg != nil {
			copy(p[:n], pg[within:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

// readSparse is readAt where there are fewer pages than the range could have.
func (d *memData) readSparse(p []byte, off int64) {
	clear(p)
	for _, number := range d.from(off / Align * Align) {
		at := number*Align - off
		if at >= int64(len(p)) {
			return
		}
		copy(p[max(at, 0):], d.pages[number][max(-at, 0):])
	}
}

// missing is how many bytes of pages a write of n bytes would add.
func (d *memData) missing(off, n int64) (bytes int64) {
	for i := off / Align; n > 0 && i <= (off+n-1)/Align; i++ {
		if d.pages[i] == nil {
			bytes += Align
		}
	}
	return bytes
}

func (d *memData) apply(c dataChange) {
	switch {
	case c.trim:
		d.truncate(c.off)
	case c.data != nil:
		d.write(c.data, c.off)
	default:
		d.punch(c.off, min(c.n, d.size-c.off))
	}
}

// write keeps p, which nobody may alter afterwards.
func (d *memData) write(p []byte, off int64) {
	d.size = max(d.size, off+int64(len(p)))
	for len(p) > 0 {
		n := min(int64(len(p)), Align-off%Align)
		if n == Align {
			d.set(off/Align, (*page)(p))
		} else {
			d.patch(p[:n], off)
		}
		p, off = p[n:], off+n
	}
}

// patch writes a part of one page.
func (d *memData) patch(p []byte, off int64) {
	pg := new(page)
	if old := d.pages[off/Align]; old != nil {
		*pg = *old
	}
	copy(pg[off%Align:], p)
	d.set(off/Align, pg)
}

func (d *memData) set(number int64, pg *page) {
	d.own()
	if d.pages[number] == nil {
		d.order = nil
	}
	d.pages[number] = pg
}

func (d *memData) punch(off, n int64) {
	if n <= 0 {
		return
	}
	end := off + n
	whole, wholeEnd := (off+Align-1)/Align*Align, end/Align*Align
	if whole > wholeEnd { // inside one page
		d.blank(off, end)
		return
	}
	d.blank(off, whole)
	d.blank(wholeEnd, end)
	d.drop(whole, wholeEnd)
}

// blank zeroes a part of one page.
func (d *memData) blank(off, end int64) {
	if off < end && d.pages[off/Align] != nil {
		d.patch(make([]byte, end-off), off)
	}
}

// drop removes whole pages. Where there are fewer than the range could have they are looked up rather than stepped over: a sparse file
// has few.
func (d *memData) drop(off, end int64) {
	if (end-off)/Align < int64(len(d.pages)) {
		d.dropEach(off/Align, end/Align)
		return
	}
	gone := d.from(off)
	n, _ := slices.BinarySearch(gone, end/Align)
	if gone = gone[:n]; n == 0 {
		return
	}
	d.own()
	for _, number := range gone {
		delete(d.pages, number)
	}
	d.order = nil
}

func (d *memData) dropEach(first, end int64) {
	for number := first; number < end; number++ {
		if d.pages[number] != nil {
			d.own()
			delete(d.pages, number)
			d.order = nil
		}
	}
}

func (d *memData) truncate(size int64) {
	d.punch(size, (d.size+Align-1)/Align*Align-size)
	d.size = size
}

// from returns the numbers of the pages that begin at off or later.
func (d *memData) from(off int64) []int64 {
	if d.order == nil {
		d.order = slices.Sorted(maps.Keys(d.pages))
	}
	i, _ := slices.BinarySearch(d.order, (off+Align-1)/Align)
	return d.order[i:]
}

// nextData returns the first offset not below off that is in a page, or the size.
func (d *memData) nextData(off int64) int64 {
	if off >= d.size {
		return d.size
	}
	if d.pages[off/Align] != nil {
		return off
	}
	if later := d.from(off); len(later) > 0 {
		return min(later[0]*Align, d.size)
	}
	return d.size
}

// tear applies a write to those of its sectors that keep chooses. The size is that of the whole write.
func (d *memData) tear(c dataChange, keep func(sector int) bool) {
	d.size = max(d.size, c.off+int64(len(c.data)))
	p, off := c.data, c.off
	for i := 0; len(p) > 0; i++ {
		n := min(int64(len(p)), sector-off%sector)
		if keep(i) {
			d.patch(p[:n], off)
		}
		p, off = p[n:], off+n
	}
}
