package enginetest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// Limits of Memory.
const (
	blockSize   = 4096
	placesMax   = 5
	sizeMax     = 16 * volume.TiB
	sizeMin     = volume.MiB
	replicasKey = "replicas"
)

// MemoryOptions shape a Memory. The zero value: three replicas of 1 TiB, any node, the real clock.
type MemoryOptions struct {
	Replicas int
	Capacity volume.Bytes // of each replica's place
	Clock    func() time.Time
	// Verifying is called before each block that Evidence reads back, without any lock: it may wait, which makes the
	// engine slow or stalled, and its error ends that run.
	Verifying func(id volume.ID, p engine.Progress) error
}

// Memory is a small true engine in memory: it keeps replicas, epochs, promises, configurations at a majority, and
// receipts as DESIGN.md has them, and forgets all of it with the process. It implements engine.Control; On gives the node
// half. Everything acknowledged is stable at once, so that only dead processes, missing replicas and rotten blocks are left to
// go wrong; the methods of memfaults.go make them. Safe for concurrent use.
type Memory struct {
	o MemoryOptions

	mu      sync.Mutex
	places  []*place
	volumes map[volume.ID]*memVolume
	born    int // incarnations so far
}

// place is where one replica of each volume lives.
type place struct {
	id   engine.ReplicaID
	down bool
}

// memVolume is a volume: one copy at each of the first places, and the processes that serve it.
type memVolume struct {
	id       volume.ID
	copies   []*replica
	writer   *session // the process on the node, alive or lost; nil: no device
	fence    *session // the gate in the writer's place
	zombies  map[volume.Epoch]*session
	evidence *collection
}

// replica is one copy. What it holds is durable.
type replica struct {
	incarnation string
	promised    volume.Epoch // older writers are refused
	left        bool         // away when the volume was salvaged: it counts no more
	record      record
	blocks      map[int64]block
	dirty       map[int64]bool // written since last read back
}

// record is a configuration. It is replaced, never changed.
type record struct {
	epoch    volume.Epoch
	step     int
	members  []bool
	spec     engine.Spec
	size     volume.Bytes
	format   engine.Format
	open     *volume.Attachment
	options  engine.PublishOptions
	staged   bool
	sealed   bool
	clean    bool // the newest writer flushed
	quarrel  string
	writer   volume.Epoch
	digest   engine.Digest
	head     []byte
	receipts [][]byte
	salvaged *engine.Salvaged
	pending  bool
}

// session is one writer: a process with a device, or the gate that took its place.
type session struct {
	at      volume.Attachment
	epoch   volume.Epoch
	seq     uint64
	size    volume.Bytes
	blank   bool
	unclean bool // the writer before it had not flushed
	stopped bool
	dead    bool

	salvaging bool
	sums      map[int64]sum // what it expects; lost with it
}

// NewMemory returns an empty engine.
func NewMemory(o MemoryOptions) *Memory {
	o.Replicas = min(cmp.Or(o.Replicas, 3), placesMax)
	o.Capacity = cmp.Or(o.Capacity, volume.TiB)
	if o.Clock == nil {
		o.Clock = time.Now
	}
	m := &Memory{o: o, volumes: map[volume.ID]*memVolume{}}
	for i := range o.Replicas {
		m.places = append(m.places, &place{id: engine.ReplicaID("memory-" + strconv.Itoa(i))})
	}
	return m
}

// newer says whether r comes after o.
func (r record) newer(o record) bool {
	return r.epoch > o.epoch || r.epoch == o.epoch && r.step > o.step
}

func (r record) view() string { return fmt.Sprintf("%d.%d", r.epoch, r.step) }

// up are the indexes of the copies that answer.
func (m *Memory) up(v *memVolume) (out []int) {
	for i := range v.copies {
		if !m.places[i].down && !v.copies[i].left {
			out = append(out, i)
		}
	}
	return out
}

// newest is the newest record of those that answer; known says that some do, certain that a majority does and with
// it a member of that record, so that it is the volume's and its content can be had.
func (m *Memory) newest(v *memVolume) (r record, known, certain bool) {
	up := m.up(v)
	for _, i := range up {
		if c := v.copies[i].record; !known || c.newer(r) {
			r, known = c, true
		}
	}
	member := slices.ContainsFunc(up, func(i int) bool { return r.members[i] })
	return r, known, member && len(up) > v.voters()/2
}

// current is the volume and its record, where both are certain.
func (m *Memory) current(id volume.ID) (*memVolume, record, error) {
	v, err := m.find(id)
	if err != nil {
		return nil, record{}, err
	}
	r, _, certain := m.newest(v)
	if !certain {
		return nil, record{}, fmt.Errorf("volume %s: %w", id, engine.ErrUnavailable)
	}
	return v, r, nil
}

func (m *Memory) find(id volume.ID) (*memVolume, error) {
	v, found := m.volumes[id]
	if found {
		return v, nil
	}
	down := 0
	for _, p := range m.places {
		if p.down {
			down++
		}
	}
	if down > 0 && down >= (len(m.places)+1)/2 {
		return nil, fmt.Errorf("volume %s: whether it exists: %w", id, engine.ErrUnavailable)
	}
	return nil, fmt.Errorf("volume %s: %w", id, engine.ErrNotFound)
}

// commit makes r, one step on, the record of every copy that answers, which are a majority.
func (m *Memory) commit(v *memVolume, r record) (record, error) {
	up := m.up(v)
	if len(up) <= v.voters()/2 {
		return r, fmt.Errorf("volume %s: %w", v.id, engine.ErrUnavailable)
	}
	for _, i := range up {
		if v.copies[i].promised > r.epoch {
			return r, fmt.Errorf("volume %s: epoch %d: %w", v.id, r.epoch, engine.ErrStaleEpoch)
		}
	}
	r.step++
	r.members = slices.Clone(r.members)
	for _, i := range up {
		v.copies[i].record, v.copies[i].promised = r, r.epoch
	}
	return r, nil
}

// next is a record of a new epoch, which every copy that answers has promised.
func (m *Memory) next(v *memVolume, r record) record {
	for _, i := range m.up(v) {
		r.epoch = max(r.epoch, v.copies[i].promised)
	}
	r.epoch, r.step = r.epoch+1, 0
	for _, i := range m.up(v) {
		v.copies[i].promised = r.epoch
	}
	return r
}

// exclude removes members that do not answer, at a majority, before anything is acknowledged without them.
func (m *Memory) exclude(v *memVolume, r record) (record, error) {
	members, changed := slices.Clone(r.members), false
	for i, member := range members {
		if member && m.places[i].down {
			members[i], changed = false, true
		}
	}
	if !changed {
		return r, nil
	}
	if _, _, certain := m.newest(v); !certain {
		return r, fmt.Errorf("volume %s: %w", v.id, engine.ErrUnavailable)
	}
	r.members = members
	return m.commit(v, r)
}

func (m *Memory) ids() []volume.ID { return slices.Sorted(maps.Keys(m.volumes)) }

// unsupported answers for what Memory does not state.
func unsupported(what string) error { return fmt.Errorf("%s: %w", what, engine.ErrUnsupported) }

// Upgrade is not supported.
func (m *Memory) Upgrade(context.Context, volume.ID, string, func(engine.Progress)) (engine.Upgrade, error) {
	return engine.Upgrade{}, unsupported("upgrade")
}

// CreateSnapshot is not supported.
func (m *Memory) CreateSnapshot(context.Context, volume.ID, string) error {
	return unsupported("snapshot")
}

// DeleteSnapshot is not supported.
func (m *Memory) DeleteSnapshot(context.Context, volume.ID, string) error {
	return unsupported("snapshot")
}

// Clone is not supported.
func (m *Memory) Clone(context.Context, volume.ID, string, engine.Spec) (engine.Volume, error) {
	return engine.Volume{}, unsupported("clone")
}
