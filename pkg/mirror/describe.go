package mirror

import (
	"errors"
	"fmt"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/volume"
)

// describe is voter i's replica as this session sees it.
func (s *Session) describe(v *view, i int) engine.Replica {
	voter := v.config.Voters[i]
	out := engine.Replica{ID: engine.ReplicaID(voter.Store.String()), State: engine.Unreachable, Reason: "store is not there"}
	r := v.replicas[i]
	if r == nil {
		return out
	}
	out.Place, out.Domain = r.dir.Path(), domainOf(r.dir)
	switch err := r.Failed(); {
	case err != nil:
		out.Reason = err.Error()
	case v.config.Members.Has(i):
		out.State, out.Reason = engine.InSync, ""
	case v.targets.Has(i):
		out.State, out.Reason = engine.Rebuilding, ""
	default:
		out.State, out.Reason = engine.Stale, "missed writes; will be rebuilt"
	}
	return out
}

// domainOf is the file system that holds the store: stores on one fail together.
func domainOf(d *store.Dir) string {
	info, err := d.Stat()
	if err != nil {
		return ""
	}
	return fmt.Sprintf("dev:%d", info.Device)
}

// describe is the volume as its stores have it. c is its newest configuration.
func (f found) describe(c quorum.Config, node volume.NodeID) engine.Volume {
	a := attributesOf(c)
	v := engine.Volume{
		Spec:  engine.Spec{ID: f.id, Name: a.Name, Size: c.Size, Parameters: a.Parameters, Labels: a.Labels},
		State: engine.Healthy, Format: a.Format, Sealed: c.Flags.Has(quorum.Sealed), Staged: c.Flags.Has(quorum.Staged),
		Writer: c.Writer, Nodes: []volume.NodeID{node}, Head: headOf(c),
	}
	if c.Published != 0 {
		v.Attachment = &volume.Attachment{Volume: f.id, Node: a.Node, Epoch: c.Published}
		v.Options = a.Options
	}
	if v.Sealed {
		v.Digest = engine.Digest{Algorithm: digest.Algorithm, Scope: "full", Bytes: c.Size, Sum: c.Digest[:]}
	}
	for i := range c.Voters {
		v.Replicas = append(v.Replicas, f.replica(c, i))
	}
	v.State, v.Reason = f.state(c, v.Replicas)
	return v
}

func (f found) replica(c quorum.Config, i int) engine.Replica {
	voter := c.Voters[i]
	out := engine.Replica{ID: engine.ReplicaID(voter.Store.String()), State: engine.InSync}
	for _, p := range f.peeks {
		if p.dir.ID() == voter.Store {
			out.Place, out.Domain = p.dir.Path(), domainOf(p.dir)
		}
	}
	err := f.cause(voter)
	switch {
	case errors.Is(err, store.ErrDamaged) || errors.Is(err, store.ErrFormat):
		out.State, out.Reason = engine.Unknown, err.Error()
	case err != nil:
		out.State, out.Reason = engine.Unreachable, err.Error()
	case !c.Members.Has(i):
		out.State, out.Reason = engine.Stale, "not in the in-sync set"
	}
	return out
}

func (f found) state(c quorum.Config, replicas []engine.Replica) (engine.State, string) {
	inSync, answering := 0, 0
	for _, r := range replicas {
		switch r.State {
		case engine.InSync:
			inSync, answering = inSync+1, answering+1
		case engine.Stale, engine.Rebuilding:
			answering++
		}
	}
	given := len(replicas)
	a := attributesOf(c)
	if a.Salvaged != nil {
		given = max(given, a.Salvaged.Replicas)
	}
	total := fmt.Sprintf("%d of %d replicas in sync", inSync, given)
	switch {
	case a.Pending:
		return engine.Quarantined, fmt.Sprintf("its salvage from store %s was decided and is not finished: belay salvage %s", a.Salvaged.From, f.id)
	case c.Flags.Has(quorum.Quarantined):
		return engine.Quarantined, "copies disagree and nobody can tell which is right"
	case answering < quorum.Majority(len(replicas)) || inSync == 0:
		return engine.Unavailable, total
	case inSync < given:
		return engine.Degraded, total
	}
	return engine.Healthy, ""
}
