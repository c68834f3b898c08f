// Package enginetest is the suite that every engine passes, and the in-memory engine that passes it first.
package enginetest

import (
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// Handle is an open block device. WriteAt and ReadAt go to the engine, past any page cache; offsets, lengths and
// buffers are multiples of 4096.
type Handle interface {
	WriteAt(p []byte, off int64) error
	ReadAt(p []byte, off int64) error
	Flush() error
	Close() error
}

// Harness is one engine under test, freshly made for one subtest. What it started ends with the test.
type Harness struct {
	Control engine.Control
	Node    engine.Node   // the node half of NodeID
	NodeID  volume.NodeID // where volumes can be attached
	// Elsewhere is another node's name that Publish accepts while a volume is attached nowhere; empty where volumes
	// cannot leave NodeID (Capabilities.NodeLocal).
	Elsewhere volume.NodeID

	Parameters map[string]string // of the volumes: as many replicas as the engine can have, at least 3 where it can
	Replicas   int               // that many
	Size       volume.Bytes      // of the volumes; at least 16 MiB, a multiple of 4 MiB

	// Open opens the device for reading and writing.
	Open func(t *testing.T, d engine.Device) Handle
	// Restart ends everything that calls the engine, as if killed, and returns what the next process would
	// have. Devices live or die as the engine has it.
	Restart func(t *testing.T) (engine.Control, engine.Node)
	// Kill ends the volume's writer as SIGKILL does.
	Kill func(t *testing.T, id volume.ID)
	// Damage changes the stored byte at off in one replica by the bits of mask, behind the engine's back, and leaves
	// its checksum as it was. The block at off was written before, and what was written is on the replica's media.
	Damage func(t *testing.T, id volume.ID, r engine.ReplicaID, off volume.Bytes, mask byte)
	// Down takes a replica's place away until Up. A replica is named as in engine.Volume.Replicas.
	Down, Up func(t *testing.T, r engine.ReplicaID)
}
