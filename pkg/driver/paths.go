package driver

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// pathMax is the kernel's limit.
const pathMax = 4096

// checkPath answers INVALID_ARGUMENT unless the path is absolute, in its shortest form, and not the root.
func checkPath(what, path string) error {
	switch {
	case path == "":
		return invalid("%s: missing", what)
	case len(path) >= pathMax:
		return invalid("%s: %d bytes, at most %d", what, len(path), pathMax-1)
	case !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" || strings.ContainsRune(path, 0):
		return invalid("%s %q: want an absolute path without . or .., double or trailing slashes", what, path)
	}
	return nil
}

// stagingDirectory answers FAILED_PRECONDITION unless path is a real and, where empty is set, empty directory.
func stagingDirectory(path string, empty bool) error {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return refused("staging path %s: does not exist", path)
	case err != nil:
		return refused("staging path %s: %v", path, err)
	case !info.IsDir():
		return refused("staging path %s: is not a directory (%s)", path, info.Mode())
	case !empty:
		return nil
	}
	return emptyDirectory("staging path", path)
}

func emptyDirectory(what, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return refused("%s %s: %v", what, path, err)
	}
	defer f.Close()
	if names, _ := f.Readdirnames(1); len(names) > 0 {
		return refused("%s %s: is not empty (%s is in it); a mount would hide it", what, path, names[0])
	}
	return nil
}

// makeTarget makes the directory or file to mount on, and says whether it is new. What is there already must be of that
// kind, and empty.
func makeTarget(path string, block bool) (made bool, err error) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return true, createTarget(path, block)
	case err != nil:
		return false, refused("target path %s: %v", path, err)
	case block && !info.Mode().IsRegular():
		return false, refused("target path %s: is not a regular file (%s), which a raw block volume is shown on", path, info.Mode())
	case block && info.Size() > 0:
		return false, refused("target path %s: is a file with data in it", path)
	case block:
		return false, nil
	case !info.IsDir():
		return false, refused("target path %s: is not a directory (%s)", path, info.Mode())
	}
	return false, emptyDirectory("target path", path)
}

func createTarget(path string, block bool) error {
	if !block {
		if err := os.Mkdir(path, 0o750); err != nil {
			return refused("target path %s: %v", path, err)
		}
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err != nil {
		return refused("target path %s: %v", path, err)
	}
	return f.Close()
}

// removeTarget removes the directory or file that was mounted on; a directory only if it is empty.
func removeTarget(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return refused("target path %s: unmounted, and not removed: %v", path, err)
	}
	return nil
}
