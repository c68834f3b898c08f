package driver

import (
	"sync"

	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/volume"
)

// locks has one lock a volume. Nobody waits for one: the orchestrator asks again.
type locks struct {
	mu   sync.Mutex
	held map[volume.ID]string
}

// take locks the volume until release is called, or answers ABORTED with the name of the call that has it.
func (l *locks) take(id volume.ID, call string) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if other, busy := l.held[id]; busy {
		return nil, answer(codes.Aborted, "volume %s: %s is running; ask again when it is done", id, other)
	}
	if l.held == nil {
		l.held = map[volume.ID]string{}
	}
	l.held[id] = call
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.held, id)
	}, nil
}
