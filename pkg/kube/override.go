package kube

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

const (
	// overridePatience is how long an override that cannot be carried out is tried. A forgotten one must not shut a writer out days later.
	overridePatience = 10 * time.Minute
	overrideMax      = 1024 // bytes of the annotation
)

// overrideWords are the keys of an override, in their order. The last has the rest of the line.
var overrideWords = []string{"volume", "epoch", "by", "reason"}

// ParseOverride reads "volume=<ID>; epoch=<n>; by=<user>; reason=<text>": exactly these, in this order. detach.ErrOverride otherwise.
func ParseOverride(s string) (o detach.Override, err error) {
	if len(s) > overrideMax || strings.ContainsFunc(s, unicode.IsControl) {
		return o, fmt.Errorf("%w: at most %d bytes on one line", detach.ErrOverride, overrideMax)
	}
	values := map[string]string{}
	for i, word := range overrideWords {
		value := s
		if i < len(overrideWords)-1 {
			value, s, _ = strings.Cut(s, ";")
		}
		key, text, _ := strings.Cut(value, "=")
		if values[word] = strings.TrimSpace(text); strings.TrimSpace(key) != word || values[word] == "" {
			return o, fmt.Errorf("%w: want %q, and %s is missing or not in its place", detach.ErrOverride, "volume=<ID>; epoch=<n>; by=<user>; reason=<text>", word)
		}
	}
	epoch, err := strconv.ParseUint(values["epoch"], 10, 64)
	if err != nil || epoch == 0 {
		return o, fmt.Errorf("%w: epoch %q is no number above 0", detach.ErrOverride, values["epoch"])
	}
	id, err := volume.ParseID(values["volume"])
	if err != nil {
		return o, fmt.Errorf("%w: %w", detach.ErrOverride, err)
	}
	return detach.Override{Volume: id, Epoch: volume.Epoch(epoch), Actor: values["by"], Reason: values["reason"]}, nil
}

// Overrides carries out what operators write to VolumeAttachments, each once: see DESIGN.md.
type Overrides struct {
	cluster  *Cluster
	reporter *Reporter
	peers    Peers
	done     func(outcome string)

	mu    sync.Mutex
	waits map[string]patience // by the attachment's name
}

// patience is with an override that cannot be carried out yet.
type patience struct {
	with  string // the attachment's UID and the text
	since time.Time
}

// NewOverrides returns a controller. told is called with "done" or "rejected"; it may be nil.
func NewOverrides(k *Cluster, r *Reporter, p Peers, told func(outcome string)) *Overrides {
	if told == nil {
		told = func(string) {}
	}
	return &Overrides{cluster: k, reporter: r, peers: p, done: told, waits: map[string]patience{}}
}

// Run carries overrides out until ctx ends.
func (o *Overrides) Run(ctx context.Context) {
	q := newQueue("attachment", o.cluster.Log, o.look)
	subscribe(ctx, o.cluster.attachments, func(x any) {
		if a, ok := x.(*storagev1.VolumeAttachment); ok && a.Annotations[AnnotationOverride] != "" {
			q.Add(a.Name)
		}
	})
	q.run(ctx, 4) // a node that hangs must not keep the others waiting
}

// outcome is what became of an override.
type outcome struct {
	done bool
	text string
}

// look carries out the override of the attachment, if it has one, and writes what became of it. An error: not yet.
func (o *Overrides) look(ctx context.Context, name string) error {
	a, err := o.cluster.API.attachments().get(ctx, name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	text, there := a.Annotations[AnnotationOverride]
	if err != nil || !there || a.Spec.Attacher != o.cluster.Driver {
		o.forget(name)
		return nil
	}
	w, out, err := o.settle(ctx, a, text)
	if err != nil {
		o.reporter.tell(w, corev1.EventTypeNormal, ReasonWaiting, "the override waits: "+err.Error())
		return err
	}
	if err := o.write(ctx, a, out); err != nil {
		return err
	}
	o.forget(name)
	o.tell(w, out)
	return nil
}

// settle says what becomes of the override; an error where that is not known yet.
func (o *Overrides) settle(ctx context.Context, a *storagev1.VolumeAttachment, text string) (about, outcome, error) {
	w, out, err := o.carryOut(ctx, a, text)
	if err == nil || !o.overdue(a, text) {
		return w, out, err
	}
	return w, outcome{text: fmt.Sprintf("could not be carried out for %v: %v; nothing was fenced for it that is known of; set it again when the cause is gone", overridePatience, err)}, nil
}

// overdue says that the override has waited for as long as one may.
func (o *Overrides) overdue(a *storagev1.VolumeAttachment, text string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	with := string(a.UID) + text
	if o.waits[a.Name].with != with {
		o.waits[a.Name] = patience{with, time.Now()}
	}
	return time.Since(o.waits[a.Name].since) >= overridePatience
}

// forget that the attachment had an override that waits.
func (o *Overrides) forget(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.waits, name)
}

func (o *Overrides) carryOut(ctx context.Context, a *storagev1.VolumeAttachment, text string) (about, outcome, error) {
	w := about{node: volume.NodeID(a.Spec.NodeName), also: []*corev1.ObjectReference{attachmentReference(a)}}
	over, err := ParseOverride(text)
	if err != nil {
		return w, outcome{text: err.Error()}, nil
	}
	handle, err := o.cluster.handleOfAttachment(ctx, a)
	w.handle = handle
	if errors.Is(err, detach.ErrOverride) {
		return w, outcome{text: err.Error()}, nil
	}
	if err != nil {
		return w, outcome{}, err
	}
	node, err := matches(over, handle)
	if err != nil {
		return w, outcome{text: err.Error()}, nil
	}
	out, err := o.fence(ctx, node, over)
	return w, out, err
}

// handleOfAttachment is the CSI handle of the volume. detach.ErrOverride where it has none.
func (k *Cluster) handleOfAttachment(ctx context.Context, a *storagev1.VolumeAttachment) (string, error) {
	name := a.Spec.Source.PersistentVolumeName
	if name == nil {
		return "", fmt.Errorf("%w: the attachment names no PersistentVolume", detach.ErrOverride)
	}
	pv, err := k.API.volumes().get(ctx, *name)
	switch {
	case apierrors.IsNotFound(err):
		return "", fmt.Errorf("%w: PersistentVolume %s does not exist", detach.ErrOverride, *name)
	case err != nil:
		return "", err
	case pv.Spec.CSI == nil || pv.Spec.CSI.Driver != k.Driver:
		return "", fmt.Errorf("%w: PersistentVolume %s is not of driver %s", detach.ErrOverride, *name, k.Driver)
	}
	return pv.Spec.CSI.VolumeHandle, nil
}

// matches returns the node whose gate decides about what the override names, none where that is the gate of this process. detach.ErrOverride where that is not
// what the attachment is of.
func matches(over detach.Override, handle string) (volume.NodeID, error) {
	id, node, err := volume.ParseHandle(handle)
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: %w", detach.ErrOverride, err)
	case id != over.Volume:
		return "", fmt.Errorf("%w: it names volume %s, and the attachment is of %s", detach.ErrOverride, over.Volume, id)
	}
	return node, nil
}

// fence asks the node. Where it says that there is nothing to override, the override may have been carried out already, by us before we
// died or by a gate that read it: then its receipt is there.
func (o *Overrides) fence(ctx context.Context, node volume.NodeID, over detach.Override) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, fenceWait)
	defer cancel()
	peer := o.peers(node)
	if peer == nil {
		return outcome{text: fmt.Sprintf("%v: volume %s: its handle names no node, and no volume here lives on none", detach.ErrOverride, over.Volume)}, nil
	}
	r, err := peer.Fence(ctx, string(over.Volume), over)
	switch {
	case err == nil:
		return forced(r), nil
	case errors.Is(err, engine.ErrNotFound):
		return outcome{text: err.Error()}, nil
	case !errors.Is(err, detach.ErrOverride):
		return outcome{}, err
	}
	all, readErr := peer.Receipts(ctx, string(over.Volume))
	if readErr != nil {
		return outcome{}, readErr
	}
	for _, e := range all.Entries {
		if r := e.Receipt; e.Error == "" && r.Kind == receipt.Forced && r.Attachment.Epoch == over.Epoch && r.Actor == over.Actor && r.Reason == over.Reason {
			return forced(r), nil
		}
	}
	return outcome{text: err.Error()}, nil
}

func forced(r receipt.Receipt) outcome {
	return outcome{true, fmt.Sprintf("forced receipt of %s, epoch %d, by %s: %s", r.At.UTC().Format("2006-01-02 15:04:05"), r.Attachment.Epoch, r.Actor, r.Reason)}
}

// write takes the override away and says what became of it, where the attachment is still the one that was looked at. One that is gone needs nothing.
func (o *Overrides) write(ctx context.Context, a *storagev1.VolumeAttachment, out outcome) error {
	word := "rejected: "
	if out.done {
		word = "done: "
	}
	err := o.cluster.annotate(ctx, a, map[string]any{AnnotationOverride: nil, AnnotationOverrideResult: word + out.text})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// annotate changes annotations of the attachment, as it was read; nil takes one away.
func (k *Cluster) annotate(ctx context.Context, a *storagev1.VolumeAttachment, annotations map[string]any) error {
	_, err := k.API.attachments().patch(ctx, a.Name, types.MergePatchType, map[string]any{"metadata": map[string]any{
		"uid": a.UID, "resourceVersion": a.ResourceVersion, "annotations": annotations,
	}})
	return err
}

func (o *Overrides) tell(w about, out outcome) {
	reason, word := ReasonOverrideRejected, "rejected"
	if out.done {
		reason, word = ReasonOverrideDone, "done"
	}
	o.done(word)
	o.cluster.Log.Warn("operator's override", "outcome", word, "volume", w.handle, "node", w.node, "text", out.text)
	o.reporter.tell(w, corev1.EventTypeWarning, reason, "override "+word+": "+out.text)
}

// Of implements detach.GateConfig.Overrides for a gate in this process: the override that an operator wrote for the open attachment, read from the API
// server. What became of it is written by Run.
func (o *Overrides) Of(ctx context.Context, open volume.Attachment) (detach.Override, bool) {
	pv, ok := o.cluster.volume(o.cluster.aboutVolume(open.Volume, open.Node).handle)
	if !ok {
		return detach.Override{}, false
	}
	for _, cached := range o.cluster.attached(pv, open.Node) {
		a, err := o.cluster.API.attachments().get(ctx, cached.Name)
		if err != nil {
			continue
		}
		over, err := ParseOverride(a.Annotations[AnnotationOverride])
		if err == nil && over.Volume == open.Volume && over.Epoch == open.Epoch {
			return over, true
		}
	}
	return detach.Override{}, false
}
