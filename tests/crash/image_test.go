package crash

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/tests/orchestrator"
)

// The parts of a replica's data file, as pkg/mirror/DESIGN.md draws them; written here a second time, so that the program is
// not believed about itself.
const (
	regionBlocks = 1024
	entrySize    = 32
	entriesSize  = regionBlocks * entrySize
	frameSize    = entriesSize + regionBlocks*blockSize
)

// extract writes the content of the volume, as one store has it, to a sparse file, and returns its hash.
func extract(store string, v *orchestrator.Volume, to string) ([]byte, error) {
	data, err := os.Open(filepath.Join(store, "volumes", v.ID, "data"))
	if err != nil {
		return nil, err
	}
	defer data.Close()
	image, err := os.Create(to)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	if err := image.Truncate(v.Size); err != nil {
		return nil, err
	}
	sum := sha256.New()
	frame := make([]byte, frameSize)
	for region := int64(0); region*regionBlocks*blockSize < v.Size; region++ {
		ok, err := readFrame(data, frame, region)
		if err == nil && ok {
			err = extractRegion(image, sum, frame, region, v.Size)
		}
		if err != nil {
			return nil, fmt.Errorf("store %s, region %d: %w", store, region, err)
		}
	}
	return sum.Sum(nil), nil
}

// readFrame says whether there is anything in the frame.
func readFrame(data *os.File, frame []byte, region int64) (bool, error) {
	at, err := unix.Seek(int(data.Fd()), region*frameSize, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) || err == nil && at >= (region+1)*frameSize {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	clear(frame)
	_, err = data.ReadAt(frame, region*frameSize)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return true, err
}

// extractRegion copies the blocks that hold something, and hashes them with their numbers.
func extractRegion(image *os.File, sum io.Writer, frame []byte, region, size int64) error {
	zeros := make([]byte, blockSize)
	for i := range int64(regionBlocks) {
		off := (region*regionBlocks + i) * blockSize
		block := frame[entriesSize+i*blockSize:][:blockSize]
		// A block whose checksum is zero is zeros, whatever is in its place.
		if empty := bytes.Equal(frame[i*entrySize:][:16], zeros[:16]); empty || off >= size || bytes.Equal(block, zeros) {
			continue
		}
		_ = binary.Write(sum, binary.LittleEndian, off) // a hash takes everything
		_, _ = sum.Write(block)
		if _, err := image.WriteAt(block, off); err != nil {
			return err
		}
	}
	return nil
}

// identical wants the same content in all stores, and a filesystem on it in which fsck finds nothing.
func (r *rig) identical(v *orchestrator.Volume, fstype string) {
	r.Helper()
	var first []byte
	for i, store := range r.Stores {
		image := filepath.Join(r.Dir, "image")
		sum, err := extract(store, v, image)
		r.must("content of "+v.ID, err)
		if first == nil {
			first = sum
		}
		if !bytes.Equal(sum, first) {
			r.Fatalf("volume %s: stores %s and %s hold different content", v.ID, store, r.Stores[0])
		}
		if i == len(r.Stores)-1 && fstype != "" {
			r.must("fsck of "+v.ID, fsck(image, fstype))
		}
		r.must("remove", os.Remove(image))
	}
}

// fsck looks and changes nothing.
func fsck(image, fstype string) error {
	args := map[string][]string{
		"ext4": {"e2fsck", "-f", "-n", image},
		"xfs":  {"xfs_repair", "-n", "-f", image},
	}[fstype]
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", args, err, out)
	}
	return nil
}
