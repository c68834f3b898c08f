package mirror

import (
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// Warm says what is known of the engine before, whose guest is alive.
type Warm struct {
	After volume.Epoch       // writer epoch of the engine before
	Lossy []engine.ReplicaID // members of which it said that a sync failed
}

func (s *Session) Yield() error                     { s.Close(); return nil }
func (s *Session) Lost() <-chan struct{}            { return nil }
func (s *Session) LostCause() error                 { return nil }
func (s *Session) LossyMembers() []engine.ReplicaID { return nil }
