package driver

import (
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/mount"
)

// modes are the access modes that a volume with one writer at a time can have.
var modes = []csi.VolumeCapability_AccessMode_Mode{
	csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
}

const singleWriter = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER

// capability is a VolumeCapability that was understood.
type capability struct {
	access detach.Access
	fsType string // "": whatever the volume has
	flags  []string
	mode   csi.VolumeCapability_AccessMode_Mode
}

func (c capability) readOnly() bool {
	return c.mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
}

// String is how the capability is kept with the volume. Filesystem and flags are not part of it.
func (c capability) String() string { return string(c.access) + ":" + c.mode.String() }

// parseCapability answers INVALID_ARGUMENT for what a volume cannot have.
func parseCapability(c *csi.VolumeCapability) (capability, error) {
	if c == nil {
		return capability{}, invalid("volume capability: missing")
	}
	parsed := capability{mode: c.GetAccessMode().GetMode()}
	if !slices.Contains(modes, parsed.mode) {
		return capability{}, invalid("access mode %s: not possible; a volume is used on one node at a time: %s", parsed.mode, modeNames())
	}
	switch {
	case c.GetBlock() != nil:
		parsed.access = detach.Block
		return parsed, nil
	case c.GetMount() == nil:
		return capability{}, invalid("volume capability: neither mount nor block")
	}
	parsed.access, parsed.fsType, parsed.flags = detach.Mount, c.GetMount().GetFsType(), c.GetMount().GetMountFlags()
	if g := c.GetMount().GetVolumeMountGroup(); g != "" {
		return capability{}, invalid("volume_mount_group %q: VOLUME_MOUNT_GROUP is not offered", g)
	}
	return parsed, checkMount(parsed)
}

func checkMount(c capability) error {
	if c.fsType != "" && !slices.Contains(mount.Filesystems, c.fsType) {
		return invalid("filesystem %q: not supported; known are %s", c.fsType, strings.Join(mount.Filesystems, ", "))
	}
	for _, f := range c.flags {
		if !oneFlag(f) {
			return invalid("mount flag %q: empty, or holds a blank, a quote that is not around its whole value, or a comma outside of quotes", f)
		}
		if name, _, _ := strings.Cut(f, "="); slices.Contains(forbiddenFlags, name) {
			return invalid("mount flag %q: not allowed; the driver decides it", f)
		}
	}
	return nil
}

// oneFlag reports whether mount(8) takes f for one option wherever it stands among others. A value may be in double quotes, and have commas
// then: kubelet passes context="system_u:object_r:container_file_t:s0:c15,c25" where SELinux is on.
func oneFlag(f string) bool {
	name, value, _ := strings.Cut(f, "=")
	if inner, quoted := strings.CutPrefix(value, `"`); quoted && strings.HasSuffix(inner, `"`) {
		value = strings.ReplaceAll(strings.TrimSuffix(inner, `"`), ",", "")
	}
	return f != "" && !strings.ContainsAny(name+value, ", \t\n\x00\"\\")
}

// forbiddenFlags would mount something else, somewhere else, or skip the journal that a detach relies on.
var forbiddenFlags = []string{"bind", "rbind", "remount", "move", "loop", "offset", "sizelimit", "shared", "rshared", "private", "rprivate",
	"slave", "rslave", "unbindable", "runbindable", "noload", "norecovery", "nologreplay", "nobarrier", "barrier", "device"}

// parseCapabilities wants at least one, all of the same access type.
func parseCapabilities(list []*csi.VolumeCapability) ([]capability, error) {
	if len(list) == 0 {
		return nil, invalid("volume capabilities: missing")
	}
	parsed := make([]capability, 0, len(list))
	for _, c := range list {
		p, err := parseCapability(c)
		if err != nil {
			return nil, err
		}
		if p.access != detach.Access("") && len(parsed) > 0 && parsed[0].access != p.access {
			return nil, invalid("volume capabilities: mount and block in one volume")
		}
		parsed = append(parsed, p)
	}
	return parsed, nil
}

func modeNames() string {
	names := make([]string, len(modes))
	for i, m := range modes {
		names[i] = m.String()
	}
	return strings.Join(names, ", ")
}
