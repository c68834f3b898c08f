package main

import (
	"bytes"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/tests/orchestrator"
)

const blockSize = 4096

// write fills a new file with a block that can be found again on the disks, then random bytes; syncs it, and returns
// its md5. mark names the block.
func write(c *orchestrator.Volume, name, mark string, size int) (sum string, err error) {
	f, err := os.Create(filepath.Join(c.Target, name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := md5.New()
	out := io.MultiWriter(f, hash)
	if _, err := out.Write(markBlock(mark)); err != nil {
		return "", err
	}
	if _, err := io.CopyBuffer(out, io.LimitReader(rand.Reader, int64(size-blockSize)), make([]byte, 1<<20)); err != nil {
		return "", err
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

func markBlock(mark string) []byte {
	return bytes.Repeat([]byte((mark + "................................")[:32]), blockSize/32)
}

// md5Of reads a file past the page cache, so that it comes from the device.
func md5Of(c *orchestrator.Volume, name string) (string, error) {
	f, err := os.Open(filepath.Join(c.Target, name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return "", err
	}
	hash := md5.New()
	_, err = io.CopyBuffer(hash, f, make([]byte, 1<<20))
	return hex.EncodeToString(hash.Sum(nil)), err
}

func wantMD5(c *orchestrator.Volume, name, want string) error {
	got, err := md5Of(c, name)
	if err == nil && got != want {
		err = fmt.Errorf("md5 of %s is %s, was %s", name, got, want)
	}
	return err
}

// flip changes one byte of the marked block in one store, behind everybody's back, as a failing disk does.
func flip(store string, c *orchestrator.Volume, mark string) error {
	f, err := os.OpenFile(filepath.Join(store, "volumes", c.ID, "data"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	at, err := find(f, markBlock(mark))
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	if _, err := f.WriteAt([]byte{'X'}, at+100); err != nil {
		return err
	}
	return f.Sync()
}

// find returns the offset of the block in the sparse file.
func find(f *os.File, block []byte) (int64, error) {
	buffer := make([]byte, 1<<20)
	for off := int64(0); ; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return 0, errors.New("the block that was written is not there")
		}
		if err != nil {
			return 0, err
		}
		off = data &^ (blockSize - 1)
		n, err := f.ReadAt(buffer, off)
		for i := 0; i+blockSize <= n; i += blockSize {
			if bytes.Equal(buffer[i:i+blockSize], block) {
				return off + int64(i), nil
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		off += int64(len(buffer))
	}
}

// away renames stores, as if their disks had been pulled; the returned function puts them back.
func away(stores ...string) (back func() error, err error) {
	for _, s := range stores {
		if err := os.Rename(s, s+".away"); err != nil {
			return nil, err
		}
	}
	return func() error {
		for _, s := range stores {
			if err := os.Rename(s+".away", s); err != nil {
				return err
			}
		}
		return nil
	}, nil
}
