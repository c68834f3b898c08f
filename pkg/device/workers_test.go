package device

import (
	"testing"

	"golang.org/x/sys/unix"
)

// held is a backend whose reads wait.
type held struct {
	Backend
	release chan struct{}
}

func (h held) ReadAt(p []byte, off int64) error {
	<-h.release
	return h.Backend.ReadAt(p, off)
}

// TestWorkers: every request has its own while all of them wait, a few stay for the next, and none outlives the server.
func TestWorkers(t *testing.T) {
	const requests = 3 * idleWorkersMax
	b := held{newMemory(t, 1<<20, 1<<20), make(chan struct{})}
	k := newKernel(t, b, ServeOptions{})
	for range 2 { // the second time some are idle
		for i := range uint64(requests) {
			k.send(ioRequest(opRead, i+1, 0, 512, nil))
		}
		eventually(t, "all requests are being served", func() bool { return k.server.Stats().Inflight == requests })
		for range requests {
			b.release <- struct{}{}
		}
		answered := map[uint64]bool{}
		for range requests {
			unique, errno, _ := k.receive()
			if errno != 0 || answered[unique] {
				t.Fatalf("reply to %d: %v, a second one: %v", unique, errno, answered[unique])
			}
			answered[unique] = true
		}
		eventually(t, "the workers that stay are idle", func() bool { return k.server.workers.idle.Load() == idleWorkersMax })
	}
	unix.Close(k.fd)
	k.fd = -1
	<-k.served
	eventually(t, "no worker is left", func() bool { return k.server.workers.idle.Load() == 0 })
}
