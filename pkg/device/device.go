// Package device is the block device the kernel sees, and how it outlives the process that serves it.
package device

// Backend is what a device shows: the engine's volume. Calls run concurrently; the device does not order
// overlapping ones. Offsets and lengths are multiples of the logical block size and lie inside the device.
// p is aligned to 4096 bytes in memory and is the backend's only until the call returns.
//
// An error ends the request with that errno where it wraps a syscall.Errno, else with EIO.
type Backend interface {
	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64) error
	// Flush returns when every write that returned before the call is on stable media.
	Flush() error
	// Discard gives the range back; it reads as zeros afterwards.
	Discard(off, n int64) error
	// Zero makes the range read as zeros.
	Zero(off, n int64) error
	// Size is the size of the device in bytes. It only grows.
	Size() int64
}
