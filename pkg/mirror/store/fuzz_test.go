package store

import (
	"bytes"
	"errors"
	"testing"

	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// FuzzDamagedSlots changes a byte of one of the two record slots: the newest record is found, or nothing; never the older one, and never
// one that nobody wrote.
func FuzzDamagedSlots(f *testing.F) {
	older, newest := recordOf(7, 3), fullRecord(8)
	good := append(slotBytes(newest), slotBytes(older)...)
	for at := range uint(2 * slotSectors) {
		f.Add(at*sectorSize+13, byte(1))
		f.Add(at*sectorSize+sectorSeqAt, byte(2))
		f.Add(at*sectorSize+sectorTagAt+2, byte(3))
	}
	f.Fuzz(func(t *testing.T, at uint, change byte) {
		disk := bytes.Clone(good)
		at %= uint(len(disk))
		disk[at] ^= change
		r, _, err := chooseOf([2][]byte{disk[:slotSize], disk[slotSize:]})
		switch {
		case err == nil && !same(r, newest):
			t.Errorf("byte %d changed by %#x: record %+v", at, change, r)
		case err != nil && (change == 0 || !errors.Is(err, ErrDamaged)):
			t.Errorf("byte %d changed by %#x: %v", at, change, err)
		}
	})
}

// FuzzTornSlots leaves of a write of a slot any of its sectors: the record before it, or the new one where all are there.
func FuzzTornSlots(f *testing.F) {
	f.Add(uint8(0), uint64(8))
	f.Add(uint8(1), uint64(8))
	f.Add(uint8(0x7f), uint64(8))
	f.Add(uint8(allSectors), uint64(8))
	f.Fuzz(func(t *testing.T, sectors uint8, sequence uint64) {
		if sequence < 4 || sequence > 1<<62 {
			return
		}
		held, before := recordOf(sequence-1, 4), recordOf(sequence-2, 3)
		next := fullRecord(sequence)
		var disk [2][]byte
		disk[slotOf(held.Sequence)] = slotBytes(held)
		disk[slotOf(sequence)] = tear(slotBytes(before), slotBytes(next), int(sectors))
		want := held
		if sectors == allSectors {
			want = next
		}
		if r, _, err := chooseOf(disk); err != nil || !same(r, want) {
			t.Errorf("sectors %08b of record %d: %+v, %v", sectors, sequence, r, err)
		}
	})
}

// FuzzDamagedSuperblock changes bytes of both copies: what is read is what was written, or nothing.
func FuzzDamagedSuperblock(f *testing.F) {
	want := testSuper()
	good := twins(want)
	f.Add(uint(0), byte(1), uint(0), byte(0))
	f.Add(uint(40), byte(1), uint(superblockSize+40), byte(1))
	f.Add(uint(100), byte(7), uint(superblockSize+100), byte(9))
	f.Fuzz(func(t *testing.T, at uint, change byte, other uint, otherChange byte) {
		disk := bytes.Clone(good)
		disk[at%uint(len(disk))] ^= change
		disk[other%uint(len(disk))] ^= otherChange
		s, damaged, err := decodeSuperblocks(disk)
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrFormat) || err == nil && s != want {
			t.Errorf("bytes %d and %d changed: %+v, %v", at, other, s, err)
		}
		if whole := bytes.Equal(disk, good); err == nil && whole != (len(damaged) == 0) {
			t.Errorf("bytes %d and %d changed: damaged copies %v", at, other, damaged)
		}
	})
}

// FuzzDamagedDirtyMap changes bytes of a dirty map: no region that was dirty is clean.
func FuzzDamagedDirtyMap(f *testing.F) {
	const regions = 3*pageRegions - 100
	var want bitmap
	want = want.grown(regions)
	for r := int64(1); r < regions; r = r*3 + 1 {
		want.set(r)
	}
	good := make([]byte, pagesFor(regions)*PageSize)
	for g := range pagesFor(regions) {
		want.encodePage(good[g*PageSize:], g, owner)
	}
	f.Add(uint(0), byte(1), uint(0), int64(regions))
	f.Add(uint(9), byte(2), uint(PageSize), int64(regions))
	f.Add(uint(PageSize+4), byte(0xff), uint(5), int64(17))
	f.Fuzz(func(t *testing.T, at uint, change byte, cut uint, written int64) {
		disk := bytes.Clone(good)
		disk[at%uint(len(disk))] ^= change
		disk = disk[:uint(len(disk))-cut%uint(len(disk))/PageSize*PageSize]
		if written < 0 || written > regions {
			return
		}
		b, damaged := decodeDirty(disk, owner, written, regions)
		for _, r := range want.list() {
			// What was never written, and whose unit is missing, was never dirty.
			if there := r/unitRegions*unitSize < int64(len(disk)); (there || r < written) && !b.has(r) {
				t.Errorf("byte %d changed by %#x, %d bytes, %d regions written: region %d is clean", at, change, len(disk), written, r)
			}
		}
		if change == 0 && len(disk) == len(good) && (damaged != 0 || len(b.list()) != len(want.list())) {
			t.Errorf("undamaged: %d units damaged", damaged)
		}
	})
}

// FuzzReceiptName: one epoch has one name, and no other name is that of a receipt.
func FuzzReceiptName(f *testing.F) {
	for _, s := range []string{receiptName(0), receiptName(7), receiptName(^volume.Epoch(0)), "0000000000000007.json.new", "000000000000000A.json", "+000000000000007.json", ""} {
		f.Add(s, uint64(len(s)))
	}
	f.Fuzz(func(t *testing.T, s string, epoch uint64) {
		if e, ok := parseReceiptName(s); ok && receiptName(e) != s {
			t.Errorf("%q is taken for that of epoch %d", s, e)
		}
		if e, ok := parseReceiptName(receiptName(volume.Epoch(epoch))); !ok || e != volume.Epoch(epoch) {
			t.Errorf("epoch %d: %q is taken for that of %d, %t", epoch, receiptName(volume.Epoch(epoch)), e, ok)
		}
	})
}

// FuzzDamagedMeta writes anything anywhere into the file that says what a replica is: it opens as what it was, or not at all.
func FuzzDamagedMeta(f *testing.F) {
	disk := newMem(f)
	d := openStore(f, disk)
	r := openReplica(f, d)
	must(f, r.Promise(r.Record().Promised+5))
	must(f, r.MarkDirty([]int64{3, 40}))
	super, record := r.Superblock(), r.Record()
	must(f, r.Close())
	meta := d.replicaPath(testID) + "/" + metaName
	f.Add(uint16(0), []byte("x"))
	f.Add(uint16(0x2000), bytes.Repeat([]byte{0xff}, 600))
	f.Add(uint16(0x3000+sectorSeqAt), []byte{1, 2, 3, 4, 5, 6, 7, 8})
	f.Add(uint16(0x4000), make([]byte, PageSize))
	f.Fuzz(func(t *testing.T, at uint16, with []byte) {
		disk := disk.CrashClone(nil)
		overwrite(t, disk, meta, int64(at)%0x5000, with)
		r, err := openStore(t, disk).Open(testID, "fuzz")
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrFormat) {
				t.Errorf("%d bytes at %#x: %v", len(with), at, err)
			}
			return
		}
		defer r.Close()
		if r.Superblock() != super || !same(r.Record(), record) {
			t.Errorf("%d bytes at %#x: opens as %+v with %+v", len(with), at, r.Superblock(), r.Record())
		}
		for _, region := range []int64{3, 40} {
			if !r.IsDirty(region) {
				t.Errorf("%d bytes at %#x: region %d is clean; dirty are %v", len(with), at, region, r.Dirty())
			}
		}
	})
}

// overwrite changes a file behind everybody's back, within what it has.
func overwrite(t *testing.T, disk vfs.FS, name string, at int64, with []byte) {
	t.Helper()
	file, err := disk.Open(name, 0)
	must(t, err)
	defer file.Close()
	info, err := file.Info()
	must(t, err)
	if n := info.Size - at; n > 0 {
		must(t, file.WriteAt(with[:min(int64(len(with)), n)], at))
		must(t, file.Datasync())
	}
}
