package machine

import (
	"fmt"
	"slices"
	"syscall"

	"github.com/belay-storage/belay/pkg/device"
)

// blockDevice is what the kernel has of a device. Everything is guarded by machine.mu.
type blockDevice struct {
	machine   *Machine
	name      string
	blockSize int
	path      string // empty while it is not attached
	size      int64  // as the kernel knows it

	holders []*Process // of the channel, each as often as it has it
	queue   []*request // that no server has taken, in order
	taken   []*request // that a server has taken and not answered, in order
	servers []*server  // that serve
	last    uint64     // request
	opens   int
	over    error         // what requests get, nil while it lives
	change  chan struct{} // closed when something changes
}

// newDevice makes a device without a server and without a path. The caller holds mu.
func (m *Machine) newDevice(c device.Config) *blockDevice {
	d := &blockDevice{machine: m, name: c.Name, blockSize: c.BlockSize, change: make(chan struct{})}
	m.channels = append(m.channels, d)
	return d
}

// known are the devices that some process has or that the kernel shows, in the order in which they were made. The caller holds mu.
func (m *Machine) known() []*blockDevice { return slices.Clone(m.channels) }

func (d *blockDevice) String() string {
	if d.path == "" {
		return "device " + d.name
	}
	return d.path
}

// changed wakes whoever waits for something to change.
func (d *blockDevice) changed() {
	close(d.change)
	d.change = make(chan struct{})
}

func (d *blockDevice) hold(p *Process) {
	if !p.ending {
		d.holders = append(d.holders, p)
	}
}

func (d *blockDevice) heldBy(p *Process) bool { return slices.Contains(d.holders, p) }

// release takes the channel away from a process that has died. With the last one the device dies.
func (d *blockDevice) release(p *Process) {
	d.holders = slices.DeleteFunc(d.holders, func(h *Process) bool { return h == p })
	d.abandoned()
}

// letGo has a process close the channel once.
func (d *blockDevice) letGo(p *Process) {
	if i := slices.Index(d.holders, p); i >= 0 {
		d.holders = slices.Delete(d.holders, i, i+1)
	}
	d.abandoned()
}

func (d *blockDevice) abandoned() {
	if len(d.holders) > 0 || d.over != nil {
		return
	}
	d.end(syscall.EIO)
	if d.path == "" {
		d.vanish()
	}
}

// end has every request fail, those that wait included.
func (d *blockDevice) end(cause error) {
	if d.over != nil {
		return
	}
	d.over = cause
	d.machine.trace("%s is dead: %v; %d requests fail", d, cause, len(d.queue)+len(d.taken))
	for _, r := range append(d.taken, d.queue...) {
		r.finish(cause)
	}
	d.taken, d.queue = nil, nil
	d.changed()
}

// vanish takes the device away.
func (d *blockDevice) vanish() {
	m := d.machine
	if m.devices[d.path] == d {
		delete(m.devices, d.path)
	}
	m.channels = slices.DeleteFunc(m.channels, func(o *blockDevice) bool { return o == d })
}

// appear gives the device the first free path.
func (d *blockDevice) appear(size int64) {
	for n := 0; d.path == ""; n++ {
		if path := fmt.Sprintf("/dev/loop%d", n); d.machine.devices[path] == nil {
			d.path = path
		}
	}
	d.size = size
	d.machine.devices[d.path] = d
	d.machine.trace("%s appears: %s, %d bytes", d, d.name, size)
}

// ask queues a request. The caller waits for its done.
func (d *blockDevice) ask(r *request) {
	r.done = make(chan struct{})
	if d.over != nil {
		r.finish(d.over)
		return
	}
	d.last++
	r.unique = d.last
	d.queue = append(d.queue, r)
	d.changed()
}

// operation is what a request wants.
type operation string

const (
	opRead    operation = "read"
	opWrite   operation = "write"
	opFlush   operation = "flush"
	opDiscard operation = "discard"
	opZero    operation = "zero"
	opSize    operation = "size" // the kernel's own
)

// request is what the kernel asks a server. What it asks is not changed; the rest is guarded by machine.mu.
type request struct {
	op     operation
	offset int64
	length int64
	data   []byte // of a write

	unique  uint64
	resent  bool
	by      *server // that has taken it
	done    chan struct{}
	err     error
	read    []byte // answer of a read
	size    int64  // answer of opSize
	answers int
}

// finish answers the request, once.
func (r *request) finish(err error) {
	if r.answers++; r.answers == 1 {
		r.err = err
		close(r.done)
	}
}

func (r *request) String() string {
	return fmt.Sprintf("%s #%d at %d for %d", r.op, r.unique, r.offset, r.length)
}
