package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/kube"
	"github.com/belay-storage/belay/pkg/receipt"
)

// fenceEvery is how often it is looked what became of overrides.
const fenceEvery = time.Second

// setOverrides writes the overrides, each to its VolumeAttachment. One that is there already stays: where it is the same it is waited for.
func (k *plugin) setOverrides(ctx context.Context, targets []*fenced) {
	for _, t := range targets {
		if t.Outcome != fenceReady {
			continue
		}
		text := overrideText(t.override)
		switch t.Outcome = fenceOpen; t.pending {
		case text:
			continue
		case "":
			_, err := k.read(ctx, needsOverride, "annotate", attachmentsResource, t.Attachment, kube.AnnotationOverride+"="+text, kube.AnnotationOverrideResult+"-")
			if err != nil {
				t.Outcome, t.Text = fenceFailed, brief(err)
			}
		default:
			t.Outcome, t.Text = fenceFailed, "another override waits to be carried out: "+t.pending
		}
	}
}

// awaitOverrides waits until no override is open any more, or for so long.
func (k *plugin) awaitOverrides(cmd *cobra.Command, targets []*fenced, wait time.Duration) {
	if wait == 0 {
		return
	}
	end := time.After(wait)
	for {
		k.lookAtOverrides(cmd, targets)
		if count(targets, fenceOpen) == 0 {
			return
		}
		select {
		case <-time.After(fenceEvery):
		case <-end:
			stillOpen(targets, fmt.Sprintf("not carried out within %v", wait))
			return
		case <-cmd.Context().Done():
			stillOpen(targets, "no longer waited for")
			return
		}
	}
}

// stillOpen says of what is open that it is not forgotten.
func stillOpen(targets []*fenced, why string) {
	for _, t := range targets {
		if t.Outcome == fenceOpen {
			t.Text = strings.TrimSuffix(why+"; "+t.Text, "; ") + fmt.Sprintf("; the override stays set and is tried on: kubectl describe %s %s", attachmentsResource, t.Attachment)
		}
	}
}

// lookAtOverrides looks once what became of the overrides that are open. Where the API server does not answer they stay so.
func (k *plugin) lookAtOverrides(cmd *cobra.Command, targets []*fenced) {
	ask := []string{"get", attachmentsResource}
	for _, t := range targets {
		if t.Outcome == fenceOpen {
			ask = append(ask, t.Attachment)
		}
	}
	if len(ask) == 2 {
		return
	}
	found, err := objects[volumeAttachment](cmd.Context(), k, needsViewer, append(ask, "--ignore-not-found")...)
	now := map[string]map[string]string{}
	for _, a := range found {
		now[a.Metadata.Name] = a.Metadata.Annotations
	}
	for _, t := range targets {
		annotations, there := now[t.Attachment]
		switch {
		case t.Outcome != fenceOpen:
		case err != nil:
			t.Text = brief(err)
		case there:
			t.settle(annotations)
		default:
			k.settleGone(cmd.Context(), t)
		}
	}
}

// settle reads what the controller wrote. It takes the override away in the same moment.
func (t *fenced) settle(annotations map[string]string) {
	if left, ok := annotations[kube.AnnotationOverride]; ok {
		if left != overrideText(t.override) {
			t.Outcome, t.Text = fenceFailed, "somebody has set another override meanwhile: "+left
		}
		return
	}
	result := annotations[kube.AnnotationOverrideResult]
	word, text, ok := strings.Cut(result, ": ")
	switch {
	case ok && (word == fenceDone || word == fenceRejected):
		t.Outcome, t.Text = word, text
	case result == "":
		t.Outcome, t.Text = fenceFailed, "somebody has taken the override back before it was carried out"
	default:
		t.Outcome, t.Text = fenceFailed, "what became of it is not understood: "+result
	}
}

// settleGone asks the receipts where the VolumeAttachment is gone. A detach may end between the fence and the look at its outcome, so
// this is nothing rare.
func (k *plugin) settleGone(ctx context.Context, t *fenced) {
	kind, err := k.receiptOf(ctx, t)
	switch {
	case err != nil:
		t.Text = "the VolumeAttachment is gone, and its receipt could not be read: " + err.Error()
	case kind == receipt.Forced:
		t.Outcome, t.Text = fenceDone, "forced receipt in force, and the VolumeAttachment is gone"
	default:
		t.Outcome, t.Text = fenceDetached, fmt.Sprintf("let go of before the override was carried out, with a receipt that is %s", kind)
	}
}

// receiptOf is the kind of the receipt that ended the attachment: forced where it was by this override.
func (k *plugin) receiptOf(ctx context.Context, t *fenced) (receipt.Kind, error) {
	raw, err := k.read(ctx, needsAsking, k.exec("receipts", "--output=json", t.Volume)...)
	var all admin.Receipts
	if e := json.Unmarshal(raw, &all); e != nil { // receipts that do not hold are printed all the same, with an exit code
		return "", cmp.Or(err, e)
	}
	for _, e := range slices.Backward(all.Entries) {
		if e.Error == "" && e.Receipt.Attachment.Epoch == t.Epoch {
			return kindFor(e.Receipt, t), nil
		}
	}
	return "", errors.Join(err, fmt.Errorf("there is no receipt of epoch %d", uint64(t.Epoch)))
}

func kindFor(r receipt.Receipt, t *fenced) receipt.Kind {
	if r.Kind == receipt.Forced && (r.Actor != t.override.Actor || r.Reason != t.override.Reason) {
		return "forced, by " + receipt.Kind(r.Actor)
	}
	return r.Kind
}
