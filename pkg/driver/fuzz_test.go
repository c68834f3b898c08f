package driver

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/mount"
	"github.com/belay-storage/belay/pkg/volume"
)

// answered wants a refusal that its caller can do something with: a code of the kind given, and few words.
func answered(t *testing.T, err error, want ...codes.Code) {
	t.Helper()
	if c := codeOf(err); !slices.Contains(want, c) || err.Error() == "" {
		t.Errorf("%s: %v; want one of %v", c, err, want)
	}
}

// capabilityOf builds what a fuzzer can reach of a capability. kind: 0 none, 1 mount, 2 block, 3 neither.
func capabilityOf(kind uint8, mode int32, fsType, flag, group string) *csi.VolumeCapability {
	c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_Mode(mode)}}
	switch kind % 4 {
	case 0:
		return nil
	case 1:
		m := &csi.VolumeCapability_MountVolume{FsType: fsType, VolumeMountGroup: group}
		if flag != "" {
			m.MountFlags = strings.Split(flag, "|")
		}
		c.AccessType = &csi.VolumeCapability_Mount{Mount: m}
	case 2:
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	}
	return c
}

// optionsOf takes a list of options apart as mount(8) does: a quote that no backslash precedes begins or ends a part where commas mean nothing.
func optionsOf(list string) (options []string) {
	quoted, from := false, 0
	for i := range len(list) {
		switch {
		case list[i] == '"' && (i == 0 || list[i-1] != '\\'):
			quoted = !quoted
		case list[i] == ',' && !quoted:
			options, from = append(options, list[from:i]), i+1
		}
	}
	return append(options, list[from:])
}

// FuzzCapability: a capability is refused as an invalid argument, or is one that a volume of ours can have, with nothing in its flags that
// mount(8) would take for another flag.
func FuzzCapability(f *testing.F) {
	f.Add(uint8(1), int32(1), "ext4", "noatime|commit=5", "")
	f.Add(uint8(1), int32(7), "xfs", "ro", "")
	f.Add(uint8(1), int32(1), "ext3", "bind", "")
	f.Add(uint8(1), int32(1), "", "noatime,loop", "")
	f.Add(uint8(1), int32(1), "", `context="system_u:object_r:container_file_t:s0:c15,c25"|ro`, "")
	f.Add(uint8(1), int32(1), "", `x="a|noload,y="`, "")
	f.Add(uint8(1), int32(1), "", `x=\"a,noload,b\"`, "")
	f.Add(uint8(2), int32(5), "", "", "")
	f.Add(uint8(1), int32(1), "", "||", "1000")
	f.Fuzz(func(t *testing.T, kind uint8, mode int32, fsType, flag, group string) {
		in := capabilityOf(kind, mode, fsType, flag, group)
		c, err := parseCapability(in)
		if err != nil {
			answered(t, err, codes.InvalidArgument)
			return
		}
		if !slices.Contains(modes, c.mode) || in == nil || (c.access == detach.Mount) == (c.access == detach.Block) {
			t.Errorf("%v became %+v", in, c)
		}
		if c.fsType != "" && !slices.Contains(mount.Filesystems, c.fsType) || group != "" && c.access == detach.Mount {
			t.Errorf("%v became %+v", in, c)
		}
		for _, option := range optionsOf(strings.Join(c.flags, ",")) {
			name, _, _ := strings.Cut(option, "=")
			if len(c.flags) > 0 && (option == "" || slices.Contains(forbiddenFlags, name)) {
				t.Errorf("%v lets %q reach mount", in, option)
			}
		}
		if n := len(optionsOf(strings.Join(c.flags, ","))); len(c.flags) > 0 && n != len(c.flags) {
			t.Errorf("%v: mount sees %d options in %d flags", in, n, len(c.flags))
		}
		if again, err := parseCapabilities([]*csi.VolumeCapability{in, in}); err != nil || len(again) != 2 || again[1].String() != c.String() {
			t.Errorf("%v twice: %+v, %v", in, again, err)
		}
	})
}

// FuzzCreation: a request for a volume is refused before anything is done, or says all that an engine needs to know.
func FuzzCreation(f *testing.F) {
	f.Add("pvc-1", uint8(1), int32(1), "ext4", int64(1)<<30, int64(0), "replicas", "3", "")
	f.Add("", uint8(1), int32(1), "", int64(0), int64(0), "", "", "")
	f.Add("Name With Blanks", uint8(2), int32(1), "", int64(-1), int64(5), "fsType", "xfs", "")
	f.Add("x", uint8(1), int32(1), "xfs", int64(10), int64(5), "csi.storage.k8s.io/fstype", "btrfs", "ext4")
	f.Add("x", uint8(1), int32(1), "", int64(1)<<62, int64(0), "csi.storage.k8s.io/pvc/name", "data", "ext4")
	f.Fuzz(func(t *testing.T, name string, kind uint8, mode int32, fsType string, required, limit int64, key, value, parameter string) {
		r := &csi.CreateVolumeRequest{
			Name: name, VolumeCapabilities: []*csi.VolumeCapability{capabilityOf(kind, mode, fsType, "", "")},
			CapacityRange: &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit}, Parameters: map[string]string{key: value},
		}
		if parameter != "" {
			r.Parameters[parameterFSType] = parameter
		}
		c, err := parseCreation(r)
		if err != nil {
			answered(t, err, codes.InvalidArgument, codes.OutOfRange)
			return
		}
		if _, err := volume.ParseID(string(c.spec.ID)); err != nil || c.spec.Name != name || c.spec.Labels[labelCapabilities] == "" {
			t.Errorf("%v became %+v, %v", r, c, err)
		}
		if fs := c.spec.Labels[labelFSType]; kind%4 == 1 && !slices.Contains(mount.Filesystems, fs) || kind%4 == 2 && fs != "" {
			t.Errorf("%v gives filesystem %q", r, fs)
		}
		for k := range c.spec.Parameters {
			if k == parameterFSType || strings.HasPrefix(k, reservedPrefix) {
				t.Errorf("parameter %q reaches the engine", k)
			}
		}
		sizeFits(t, c.size, sizeLeast[c.spec.Labels[labelFSType]])
	})
}

func sizeFits(t *testing.T, r sizeRange, least volume.Bytes) {
	t.Helper()
	size, err := r.choose(least)
	if err != nil {
		answered(t, err, codes.OutOfRange)
		return
	}
	if size <= 0 || size%sizeStep != 0 || size < least || size < r.required || r.limit > 0 && size > r.limit {
		t.Errorf("%+v, at least %d: %d", r, least, size)
	}
}

// FuzzExpansion: a range of sizes is refused, or has a size in it, or says why not.
func FuzzExpansion(f *testing.F) {
	f.Add(int64(0), int64(0), uint8(0), int64(0))
	f.Add(int64(1), int64(1), uint8(2), int64(300<<20))
	f.Add(int64(1)<<60, int64(0), uint8(1), int64(0))
	f.Add(int64(5<<20), int64(6<<20), uint8(0), int64(0))
	f.Fuzz(func(t *testing.T, required, limit int64, kind uint8, least int64) {
		r := &csi.ControllerExpandVolumeRequest{
			CapacityRange: &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit}, VolumeCapability: capabilityOf(kind, 1, "", "", ""),
		}
		size, err := parseExpansion(r)
		if err != nil {
			answered(t, err, codes.InvalidArgument, codes.OutOfRange)
			return
		}
		if size.required != volume.Bytes(required) || size.limit != volume.Bytes(limit) || required < 0 || limit < 0 || limit > 0 && required > limit {
			t.Errorf("%v became %+v", r, size)
		}
		sizeFits(t, size, volume.Bytes(least)%sizeMax)
	})
}

// FuzzStaging: what is staged has an ID, an epoch, this node, and a path that leads nowhere else.
func FuzzStaging(f *testing.F) {
	f.Add("pvc-1", "/var/lib/kubelet/staging", "7", uint8(1))
	f.Add("pvc-1@n2", "/var/lib/kubelet/staging", "7", uint8(1))
	f.Add("../..", "/a/../b", "-1", uint8(1))
	f.Add("pvc-1", "/a", "18446744073709551616", uint8(2))
	f.Add("pvc-1", "/a\x00", "+7", uint8(2))
	f.Fuzz(func(t *testing.T, id, path, epoch string, kind uint8) {
		d := &Driver{Config: Config{NodeID: "node-1"}}
		s, err := d.parseStaging(&csi.NodeStageVolumeRequest{
			VolumeId: id, StagingTargetPath: path, VolumeCapability: capabilityOf(kind, 1, "", "", ""), PublishContext: map[string]string{contextEpoch: epoch},
		})
		if err != nil {
			answered(t, err, codes.InvalidArgument, codes.NotFound)
			return
		}
		if string(s.at.Volume) != id || s.at.Node != "node-1" || s.at.Epoch == 0 || s.path != path || !confined(path) {
			t.Errorf("%q at %q in epoch %q: %+v", id, path, epoch, s)
		}
	})
}

// confined says, in other words than checkPath, that the path names one place below the root.
func confined(path string) bool {
	return strings.HasPrefix(path, "/") && path != "/" && filepath.Join("/", path) == path && !strings.Contains(path, "\x00") && len(path) < pathMax
}

// FuzzPublication: a target that is read-only by any word for it is read-only.
func FuzzPublication(f *testing.F) {
	f.Add("pvc-1", "/staging", "/pods/a", uint8(1), int32(1), "ro", false)
	f.Add("pvc-1", "/staging", "/pods/a", uint8(2), int32(2), "", false)
	f.Add("pvc-1", "/staging", "pods", uint8(1), int32(1), "rw", true)
	f.Fuzz(func(t *testing.T, id, stage, target string, kind uint8, mode int32, flag string, readOnly bool) {
		in := capabilityOf(kind, mode, "", flag, "")
		p, err := (&Driver{}).parsePublication(&csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: stage, TargetPath: target, VolumeCapability: in, Readonly: readOnly})
		if err != nil {
			answered(t, err, codes.InvalidArgument, codes.NotFound)
			return
		}
		if string(p.id) != id || p.staging != stage || p.target.Path != target || !confined(stage) || !confined(target) {
			t.Errorf("%q at %q for %q: %+v", id, stage, target, p)
		}
		asked := readOnly || in.GetAccessMode().GetMode() == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
		if flagged := slices.Contains(p.want.flags, "ro"); p.target.ReadOnly != (asked || flagged) {
			t.Errorf("read-only %t, %v: %+v", readOnly, in, p)
		}
	})
}

// FuzzToken: a token of ListVolumes is one of ours, or refused so that the caller lists anew.
func FuzzToken(f *testing.F) {
	for _, s := range []string{"", "after:a", "after:", "after:../x", "invalid-token", "after:after:a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, token string) {
		id, err := parseToken(token)
		if err != nil {
			answered(t, err, codes.Aborted)
			return
		}
		if token != "" && tokenPrefix+string(id) != token {
			t.Errorf("%q became %q", token, id)
		}
	})
}

// FuzzPath: a path is refused as an invalid argument, or names one place below the root.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"", "/", "/a", "/a/../b", "a", "//a", "/a/", "/a\x00b", "/" + strings.Repeat("x", pathMax)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		err := checkPath("path", path)
		if err != nil {
			answered(t, err, codes.InvalidArgument)
		}
		if (err == nil) != confined(path) {
			t.Errorf("%q: %v", path, err)
		}
	})
}
