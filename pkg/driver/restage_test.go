package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mount"
	"github.com/belay-storage/belay/pkg/volume"
)

// The device is lost, its pod makes room for another on the same node, and the orchestrator, which has the volume staged, only publishes it.
func TestPublishAfterTheDeviceWasLost(t *testing.T) {
	root(t)
	for _, fsType := range mount.Filesystems {
		t.Run(fsType, func(t *testing.T) {
			p := start(t)
			s := p.wrote(fsType)
			must(t, s.show())
			p.engine.Kill(volume.ID(s.id))
			p.loops.lose(volume.ID(s.id))
			other := *s
			other.target = filepath.Join(t.TempDir(), "other")
			wants(t, other.show(), codes.FailedPrecondition, s.id) // the first pod still uses it
			must(t, s.hide())
			wants(t, other.show(), codes.Aborted, s.id) // its remains are ended
			must(t, other.show())
			if b, err := os.ReadFile(filepath.Join(other.target, "file")); err != nil || len(b) != 1<<20 {
				t.Errorf("what was synced: %d bytes, %v", len(b), err)
			}
			must(t, other.show()) // again: nothing happens twice
			must(t, other.hide())
			must(t, s.unstage())
			must(t, s.unpublish())
			wants(t, other.show(), codes.FailedPrecondition, "not staged") // only within the attachment
		})
	}
}

// What the staging anew needs may be away, and the orchestrator asks for nothing but the publication again.
func TestPublishAfterTheDeviceWasLostGoesOn(t *testing.T) {
	root(t)
	p := start(t)
	s := p.wrote("ext4")
	p.engine.Kill(volume.ID(s.id))
	p.loops.lose(volume.ID(s.id))
	away := fmt.Errorf("its stores: %w", engine.ErrUnavailable)
	p.loops.refuse(nil, away)
	wants(t, s.show(), codes.Unavailable, s.id, "ending its remains")
	wants(t, s.show(), codes.Unavailable, s.id)
	p.loops.refuse(away, nil)
	wants(t, s.show(), codes.Unavailable, s.id)
	wants(t, s.show(), codes.Unavailable, s.id)
	p.loops.refuse(nil, nil)
	must(t, s.show())
	if b, err := os.ReadFile(filepath.Join(s.target, "file")); err != nil || len(b) != 1<<20 {
		t.Errorf("what was synced: %d bytes, %v", len(b), err)
	}
	s.leave()
}

// Without a loss a volume must be staged before it is published.
func TestPublishDoesNotStage(t *testing.T) {
	root(t)
	p := start(t)
	s := p.create("data", 256, asMount("ext4", writer)).publish()
	wants(t, s.show(), codes.FailedPrecondition, "not staged")
	must(t, s.stage())
	must(t, s.show())
	must(t, s.hide())
	must(t, s.unstage())
	must(t, s.unpublish())
}
