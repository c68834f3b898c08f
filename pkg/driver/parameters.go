package driver

import (
	"maps"
	"slices"
	"strings"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mount"
)

// Parameters of a StorageClass that are the driver's own. All others are the engine's, which refuses what it does not know.
const (
	parameterFSType = "fsType"
	// parameterRestart is for the controller of a cluster, which reads it in the StorageClass.
	parameterRestart = "restartOnDeviceLoss"
	// reservedPrefix is for the orchestrator's sidecars. What they pass on for our information is ignored.
	reservedPrefix  = "csi.storage.k8s.io/"
	reservedFSType  = reservedPrefix + "fstype"
	reservedPVCName = reservedPrefix + "pvc/name"
	reservedPVCSpan = reservedPrefix + "pvc/namespace"
)

// Labels that the driver keeps with a volume.
const (
	labelFSType       = "fsType"
	labelCapabilities = "capabilities"
	labelPVC          = "pvc" // namespace/name
)

// engineParameters is what is left for the engine.
func engineParameters(all map[string]string) map[string]string {
	rest := maps.Clone(all)
	maps.DeleteFunc(rest, func(k, _ string) bool {
		return k == parameterFSType || k == parameterRestart || strings.HasPrefix(k, reservedPrefix)
	})
	if len(rest) == 0 {
		return nil
	}
	return rest
}

// labelsFor returns what is kept with a volume of these parameters and capabilities.
func labelsFor(all map[string]string, caps []capability) (map[string]string, error) {
	if v, given := all[parameterRestart]; given && v != "true" && v != "false" {
		return nil, invalid("parameter %s %q: want true or false", parameterRestart, v)
	}
	fsType, err := chooseFS(all, caps)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(caps))
	for i, c := range caps {
		names[i] = c.String()
	}
	slices.Sort(names)
	labels := map[string]string{labelCapabilities: strings.Join(slices.Compact(names), " ")}
	if fsType != "" {
		labels[labelFSType] = fsType
	}
	if name := all[reservedPVCName]; name != "" {
		labels[labelPVC] = all[reservedPVCSpan] + "/" + name
	}
	return labels, nil
}

// chooseFS returns the filesystem that all agree on, "" for a raw block volume.
func chooseFS(all map[string]string, caps []capability) (string, error) {
	if caps[0].access == detach.Block {
		return "", nil
	}
	chosen, from := "", ""
	consider := func(fsType, who string) error {
		switch {
		case fsType == "" || fsType == chosen:
			return nil
		case !slices.Contains(mount.Filesystems, fsType):
			return invalid("%s asks for filesystem %q: not supported; known are %s", who, fsType, strings.Join(mount.Filesystems, ", "))
		case chosen != "":
			return invalid("%s asks for filesystem %s and %s for %s", from, chosen, who, fsType)
		}
		chosen, from = fsType, who
		return nil
	}
	for _, key := range []string{parameterFSType, reservedFSType} {
		if err := consider(all[key], "parameter "+key); err != nil {
			return "", err
		}
	}
	for _, c := range caps {
		if err := consider(c.fsType, "volume capability"); err != nil {
			return "", err
		}
	}
	if chosen == "" {
		return mount.Filesystems[0], nil
	}
	return chosen, nil
}

// filesystemOf is the filesystem that a volume has, or will have once it is staged as mount.
func filesystemOf(v engine.Volume) string {
	switch {
	case v.Format.FSType != "":
		return v.Format.FSType
	case v.Labels[labelFSType] != "":
		return v.Labels[labelFSType]
	}
	return mount.Filesystems[0]
}
