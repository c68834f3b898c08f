package sim

import (
	"math/rand/v2"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// forged is a disk that says that it is the store, and has a replica of the volume that nobody has admitted: empty, of another incarnation, with
// the configuration that the volume had when it was made. It remembers no promise. Where the store has no replica now the disk is empty.
func (w *world) forged(d *disk, r *rand.Rand) *vfs.Mem {
	empty := w.newStoreDisk(d.name)
	if err := w.forge(d, empty, r); err != nil {
		w.trace.add(func() string { return "forging: " + err.Error() })
		return w.newStoreDisk(d.name)
	}
	return empty
}

func (w *world) forge(d *disk, onto *vfs.Mem, r *rand.Rand) error {
	old := w.invariants.replicaOn(d.mem.CrashClone(nil), d.name)
	if old == nil {
		return nil
	}
	sb, config := old.Superblock(), old.Record().Config
	if err := old.Close(); err != nil {
		return err
	}
	identity, err := vfs.ReadFile(d.mem.Process(), d.name+"/"+store.IdentityFile, 4096)
	if err != nil {
		return err
	}
	for _, name := range []string{"volumes", "incoming", "trash", "tombstones"} {
		if err := onto.Mkdir(d.name + "/" + name); err != nil {
			return err
		}
	}
	if err := vfs.WriteFile(onto, d.name+"/"+store.IdentityFile, identity); err != nil {
		return err
	}
	dir, err := store.OpenDir(onto, d.name, w.invariants.installation())
	if err != nil {
		return err
	}
	for i := range sb.Incarnation {
		sb.Incarnation[i] = byte(r.IntN(256))
	}
	w.invariants.forged[sb.Incarnation] = true
	config.Epoch, config.Step, config.Members = 1, 1, quorum.All(len(config.Voters))
	config.Published, config.Writer, config.Flags, config.Head = 0, 0, quorum.Sealed|quorum.Clean, [32]byte{}
	return dir.Create(sb, config)
}
