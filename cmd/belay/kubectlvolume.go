package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/admin"
)

// What the API server must allow, as deploy/ names it.
const (
	needsViewer   = "the ClusterRole belay-viewer"
	needsAsking   = "the Role belay-viewer of Belay's namespace, bound there by a RoleBinding, beside the ClusterRole belay-viewer"
	needsUpgrade  = "the ClusterRole belay-operator, beside the ClusterRole belay-viewer and the Role belay-viewer of Belay's namespace"
	needsExec     = `the right to "exec" on pods.belay.storage (policy belay-exec), beside the Role belay-viewer of Belay's namespace; see deploy/`
	needsOverride = "the ClusterRole belay-override, beside the ClusterRole belay-viewer"
	needsWhoami   = "the ClusterRole system:basic-user, which every authenticated user has by default"
)

// The parts of the cluster's objects that are looked at.
type (
	metadata struct {
		Name        string            `json:"name"`
		Namespace   string            `json:"namespace"`
		Annotations map[string]string `json:"annotations"`
	}
	persistentClaim struct {
		Metadata metadata `json:"metadata"`
		Spec     struct {
			VolumeName string `json:"volumeName"`
		} `json:"spec"`
		Status struct {
			Phase string `json:"phase"`
		} `json:"status"`
	}
	persistentVolume struct {
		Metadata metadata `json:"metadata"`
		Spec     struct {
			CSI *struct {
				Driver       string `json:"driver"`
				VolumeHandle string `json:"volumeHandle"`
			} `json:"csi"`
			ClaimRef *struct {
				Namespace string `json:"namespace"`
				Name      string `json:"name"`
			} `json:"claimRef"`
		} `json:"spec"`
	}
	volumeAttachment struct {
		Metadata metadata `json:"metadata"`
		Spec     struct {
			Attacher string `json:"attacher"`
			NodeName string `json:"nodeName"`
			Source   struct {
				PersistentVolumeName string `json:"persistentVolumeName"`
			} `json:"source"`
		} `json:"spec"`
	}
)

// handle is how Belay names the volume. It is empty where it is not of the driver.
func (p persistentVolume) handle(driver string) string {
	if p.Spec.CSI == nil || p.Spec.CSI.Driver != driver {
		return ""
	}
	return p.Spec.CSI.VolumeHandle
}

// claim is the namespace and name of the volume's claim.
func (p persistentVolume) claim() string {
	if p.Spec.ClaimRef == nil {
		return ""
	}
	return p.Spec.ClaimRef.Namespace + "/" + p.Spec.ClaimRef.Name
}

// kinds are the names of the kinds that a volume can be named by, as kubectl knows them.
var kinds = map[string]string{
	"pvc": "pvc", "persistentvolumeclaim": "pvc", "persistentvolumeclaims": "pvc",
	"pv": "pv", "persistentvolume": "pv", "persistentvolumes": "pv",
	"node": "node", "nodes": "node", "no": "node",
}

// named reads TYPE/NAME. The kind is empty for a bare name.
func named(arg string) (kind, name string, err error) {
	kind, name, slash := strings.Cut(arg, "/")
	if !slash {
		return "", arg, nil
	}
	if kind = kinds[strings.ToLower(kind)]; kind == "" || name == "" || strings.ContainsAny(name, "/ ") {
		return "", "", usageError{fmt.Errorf("%q: want pvc/NAME, pv/NAME, or a volume's handle as `kubectl belay volumes` lists it", arg)}
	}
	return kind, name, nil
}

// volume is the name of a volume for Belay: its handle, or what was given where that is no claim's name.
func (k *plugin) volume(ctx context.Context, arg string) (string, error) {
	kind, name, err := named(arg)
	switch {
	case err != nil:
		return "", err
	case kind == "node":
		return "", usageError{fmt.Errorf("%q is a node; name one volume: pvc/NAME, pv/NAME or its handle", arg)}
	case kind == "pv":
		return k.ofPV(ctx, name)
	case kind == "" && strings.Contains(name, "@"):
		return name, nil
	}
	return k.ofClaim(ctx, name, kind == "")
}

// ofClaim is the handle of the claim's volume. Where there need be none of that name, the name is returned instead.
func (k *plugin) ofClaim(ctx context.Context, name string, maybe bool) (string, error) {
	args := append([]string{"get", "pvc", name}, k.inNamespace()...)
	if maybe {
		args = append(args, "--ignore-not-found")
	}
	found, err := objects[persistentClaim](ctx, k, needsViewer, args...)
	switch {
	case err != nil:
		return "", err
	case len(found) == 0:
		return name, nil
	}
	c := found[0]
	if c.Spec.VolumeName == "" {
		return "", unbound(c)
	}
	handle, err := k.ofPV(ctx, c.Spec.VolumeName)
	if err != nil {
		return "", fmt.Errorf("claim %s/%s is %s: %w", c.Metadata.Namespace, c.Metadata.Name, cmp.Or(c.Status.Phase, "of no phase"), err)
	}
	return handle, nil
}

func unbound(c persistentClaim) error {
	return fmt.Errorf("claim %s/%s is %s and has no volume yet; its events say why, or that it waits for a pod that uses it: kubectl describe pvc %s --namespace=%s",
		c.Metadata.Namespace, c.Metadata.Name, cmp.Or(c.Status.Phase, "not looked at yet"), c.Metadata.Name, c.Metadata.Namespace)
}

func (k *plugin) ofPV(ctx context.Context, name string) (string, error) {
	found, err := objects[persistentVolume](ctx, k, needsViewer, "get", "pv", name)
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("kubectl printed %d objects for PersistentVolume %s", len(found), name)
	}
	handle := found[0].handle(k.driver)
	if handle == "" {
		of := "of no CSI driver"
		if csi := found[0].Spec.CSI; csi != nil {
			of = "of driver " + csi.Driver
		}
		return "", fmt.Errorf("PersistentVolume %s is %s, not of %s: Belay does not know it (--drivername names another)", name, of, k.driver)
	}
	return handle, nil
}

// listing is what the controller lists. Where machines are away the rest is returned too, with passedOn; the controller has said on standard error
// which.
func (k *plugin) listing(cmd *cobra.Command) (out []admin.Volume, err error) {
	var raw strings.Builder
	err = passing(k.do(cmd.Context(), call{args: k.exec("volumes", "--output=json"), needs: needsAsking, out: &raw, errOut: cmd.ErrOrStderr()}))
	if _, passed := errors.AsType[passedOn](err); err != nil && (!passed || raw.Len() == 0) {
		return nil, err
	}
	if e := json.Unmarshal([]byte(raw.String()), &out); e != nil {
		return nil, errors.Join(fmt.Errorf("what the controller lists is not understood: %w", e), err)
	}
	return out, err
}
