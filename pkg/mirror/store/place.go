package store

// IdentityFile is the file that makes a directory a store.
const IdentityFile = identityName

// MountID identifies the mount that the replica's files are on, unique since boot: another one means that the disk was
// unmounted meanwhile, and with it what its cache held. 0 where unknown.
func (r *Replica) MountID() uint64 {
	info, err := r.data.Info()
	if err != nil {
		return 0
	}
	return info.Mount
}

// DataOffset is where in the file data of a replica a block lies. Tools that examine or damage a replica use it.
func DataOffset(block int64) int64 { return blockGrid.offset(block) }
