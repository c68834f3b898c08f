package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/kube"
	"github.com/belay-storage/belay/pkg/volume"
)

// attachmentsResource names VolumeAttachments so that no other group's are meant.
const attachmentsResource = "volumeattachments.storage.k8s.io"

// situation is what the cluster and the machines say before a fence.
type situation struct {
	driver      string
	attachments []volumeAttachment
	pvs         map[string]persistentVolume // by name
	listed      []admin.Volume
}

// planFence finds what a node or a volume has attached, and the word by which a person agrees to fence it.
func (k *plugin) planFence(cmd *cobra.Command, arg string) (word string, targets []*fenced, err error) {
	kind, name, err := named(arg)
	if err != nil {
		return "", nil, err
	}
	wanted := func(_ string, node volume.NodeID) bool { return string(node) == name }
	if kind != "node" {
		if name, err = k.volume(cmd.Context(), arg); err != nil {
			return "", nil, err
		}
	}
	s, err := k.situation(cmd)
	if err != nil {
		return "", nil, err
	}
	if kind != "node" {
		if name, err = s.handleOf(name); err != nil {
			return "", nil, err
		}
		wanted = func(handle string, _ volume.NodeID) bool { return handle == name }
	}
	if targets = s.plan(wanted); len(targets) == 0 {
		return "", nil, fmt.Errorf("%s has nothing attached: no VolumeAttachment of driver %s is of it, and no machine says so; see `kubectl belay volumes`", arg, k.driver)
	}
	return name, targets, nil
}

// situation asks. A machine that is away is no error here: its volumes are among the attachments, and that they cannot be fenced is told of each.
func (k *plugin) situation(cmd *cobra.Command) (s situation, err error) {
	s = situation{driver: k.driver, pvs: map[string]persistentVolume{}}
	if s.attachments, err = objects[volumeAttachment](cmd.Context(), k, needsViewer, "get", attachmentsResource); err != nil {
		return s, err
	}
	pvs, err := objects[persistentVolume](cmd.Context(), k, needsViewer, "get", "pv")
	if err != nil {
		return s, err
	}
	for _, p := range pvs {
		s.pvs[p.Metadata.Name] = p
	}
	if s.listed, err = k.listing(cmd); s.listed != nil && errors.As(err, new(passedOn)) {
		err = nil
	}
	return s, err
}

// handleOf is the handle of a volume that was named by its ID or the orchestrator's name. A usageError where several have it.
func (s situation) handleOf(name string) (string, error) {
	var found []string
	for _, v := range s.listed {
		if string(v.ID) == name || v.Name == name {
			found = append(found, nameOf(v))
		}
	}
	switch len(found) {
	case 0:
		return name, nil
	case 1:
		return found[0], nil
	}
	return "", usageError{fmt.Errorf("%s names several volumes: say which: %s", name, strings.Join(found, ", "))}
}

// plan says of each attached volume that is wanted what is to become of it, in the order of their handles.
func (s situation) plan(wanted func(handle string, node volume.NodeID) bool) (out []*fenced) {
	seen := map[string]bool{}
	for _, a := range s.attachments {
		pv := s.pvs[a.Spec.Source.PersistentVolumeName]
		handle := cmp.Or(pv.handle(s.driver), a.Spec.Source.PersistentVolumeName)
		if node := volume.NodeID(a.Spec.NodeName); a.Spec.Attacher == s.driver && wanted(handle, node) {
			t := &fenced{Volume: handle, Claim: pv.claim(), Node: node, Attachment: a.Metadata.Name, pending: a.Metadata.Annotations[kube.AnnotationOverride]}
			s.judge(t)
			seen[handle] = seen[handle] || t.Outcome != fenceSkipped
			out = append(out, t)
		}
	}
	for _, v := range s.listed {
		if hasWriter(v) && !seen[nameOf(v)] && wanted(nameOf(v), v.Attachment.Node) {
			out = append(out, s.orphan(v))
		}
	}
	slices.SortFunc(out, func(a, b *fenced) int {
		return cmp.Or(strings.Compare(a.Volume, b.Volume), strings.Compare(a.Attachment, b.Attachment))
	})
	return out
}

// hasWriter says that somebody may be writing, within an attachment that can be named.
func hasWriter(v admin.Volume) bool { return !v.Sealed && v.Attachment != nil }

// judge compares an attachment with what the volume's machine says.
func (s situation) judge(t *fenced) {
	i := slices.IndexFunc(s.listed, func(v admin.Volume) bool { return nameOf(v) == t.Volume || string(v.ID) == t.Volume })
	if i < 0 {
		t.Outcome, t.Text = fenceFailed, "no machine that answers has it, so that the epoch of its attachment is not known; nobody can be shut out while its machine is away"
		return
	}
	t.listed = s.listed[i]
	switch v := t.listed; {
	case !hasWriter(v):
		t.Outcome, t.Text = fenceSkipped, useOf(v.Volume)+": there is no writer to shut out"
	case v.Attachment.Node != t.Node:
		t.Outcome, t.Text = fenceSkipped, "it is attached to node "+string(v.Attachment.Node)+" by now"
	default:
		t.Epoch = v.Attachment.Epoch
	}
}

// orphan is a volume with a writer, and with no VolumeAttachment that an override could be written to.
func (s situation) orphan(v admin.Volume) *fenced {
	t := &fenced{Volume: nameOf(v), Node: v.Attachment.Node, Epoch: v.Attachment.Epoch, listed: v, Outcome: fenceFailed}
	for _, p := range s.pvs {
		if p.handle(s.driver) == t.Volume {
			t.Claim = p.claim()
		}
	}
	t.Text = fmt.Sprintf("it has no VolumeAttachment to write an override to; the next attach shuts the writer out, or on its machine: belay fence %s --epoch %d --reason TEXT", v.ID, uint64(t.Epoch))
	return t
}
