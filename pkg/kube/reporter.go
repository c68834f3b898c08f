package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/belay-storage/belay/pkg/volume"
)

// What is told of one thing at most: the first eventBurst at once, then one every eventEvery.
const (
	eventBurst = 10
	eventEvery = time.Minute
	// eventSeriesMax is how many series are known: three of each of some thousand volumes. Of more none is limited.
	eventSeriesMax = 16384
	// eventTextMax is how long the text of an Event may be.
	eventTextMax = 1024
	// eventPatience is how long the writing of Events waits between tries, for an API server that is away or in trouble.
	eventPatience = 10 * time.Second
)

// annotationVolume of an Event names the volume, so that those of several volumes on one Node stay apart.
const annotationVolume = prefix + "volume"

// Reporter tells people what happens to volumes, by Events on the PersistentVolumeClaim, the VolumeAttachment and the Node. What is said again of the
// same object, reason and volume is one Event that counts and has the newest text. Nothing waits for it: Events wait for as long as the API server is away,
// the first thousand of them. Safe for concurrent use.
type Reporter struct {
	*Cluster
	recorder    record.EventRecorder
	broadcaster record.EventBroadcaster
	told        func(reason string)
}

// NewReporter returns a reporter of the component. told is called with the reason of each thing that is told; it may be nil. Run starts it; what
// is told before is told to nobody.
func NewReporter(k *Cluster, component string, told func(reason string)) *Reporter {
	b := record.NewBroadcaster(record.WithCorrelatorOptions(limits()), record.WithSleepDuration(eventPatience))
	if told == nil {
		told = func(string) {}
	}
	return &Reporter{Cluster: k, broadcaster: b, recorder: b.NewRecorder(k.API.scheme, corev1.EventSource{Component: component}), told: told}
}

// limits have Events of a series be one, and not too often.
func limits() record.CorrelatorOptions {
	return record.CorrelatorOptions{
		LRUCacheSize: eventSeriesMax, BurstSize: eventBurst, QPS: float32(1 / eventEvery.Seconds()), SpamKeyFunc: series,
		MaxEvents: 1, KeyFunc: func(e *corev1.Event) (string, string) { return series(e), e.Message },
		MessageFunc: func(e *corev1.Event) string { return e.Message },
	}
}

// series is what Events have in common that are one. The volume is in FieldPath: record asks of copies too, which have no annotations.
func series(e *corev1.Event) string {
	o := e.InvolvedObject
	return strings.Join([]string{o.Kind, o.Namespace, o.Name, string(o.UID), e.Type, e.Reason, o.FieldPath}, "|")
}

// written is the Event as the API server gets it: the volume stands in an annotation.
func written(e *corev1.Event) *corev1.Event {
	e = e.DeepCopy()
	if v := e.InvolvedObject.FieldPath; v != "" {
		e.InvolvedObject.FieldPath, e.Annotations = "", map[string]string{annotationVolume: v}
	}
	return e
}

// Run writes what is told until ctx ends.
func (r *Reporter) Run(ctx context.Context) {
	writing := r.broadcaster.StartRecordingToSink(&sink{ctx: ctx, api: r.API})
	<-ctx.Done()
	r.broadcaster.Shutdown()
	writing.Stop()
}

// about names what an Event is told of.
type about struct {
	handle string        // of the volume; empty: of the node alone
	node   volume.NodeID // empty: of the volume alone
	also   []*corev1.ObjectReference
}

// aboutVolume is the volume of the node, by the name that it has in the cluster.
func (k *Cluster) aboutVolume(id volume.ID, node volume.NodeID) about {
	all := handles(id, node)
	for _, h := range all {
		if _, ok := k.volume(h); ok {
			return about{handle: h, node: node}
		}
	}
	return about{handle: all[0], node: node}
}

// volume is the PersistentVolume with the CSI handle.
func (k *Cluster) volume(handle string) (*corev1.PersistentVolume, bool) {
	found := some[*corev1.PersistentVolume](k.volumes, byHandle, handle)
	if len(found) == 0 {
		return nil, false
	}
	return found[0], true
}

// attached are the VolumeAttachments of the volume to the node, to any where node is empty.
func (k *Cluster) attached(pv *corev1.PersistentVolume, node volume.NodeID) (out []*storagev1.VolumeAttachment) {
	for _, a := range some[*storagev1.VolumeAttachment](k.attachments, byVolume, pv.Name) {
		if node == "" || a.Spec.NodeName == string(node) {
			out = append(out, a)
		}
	}
	return out
}

// tell makes an Event for every object that it is about. Objects that the cluster does not have are left out.
func (r *Reporter) tell(a about, kind, reason, text string) {
	r.told(reason)
	if len(text) > eventTextMax {
		text = strings.ToValidUTF8(text[:eventTextMax-len("…")], "") + "…"
	}
	told := map[types.UID]bool{}
	for _, o := range append(r.objects(a), a.also...) {
		if told[o.UID] {
			continue
		}
		told[o.UID] = true
		of := *o
		of.FieldPath = a.handle
		r.recorder.Eventf(&of, kind, reason, "%s", text)
	}
}

func (r *Reporter) objects(a about) (out []*corev1.ObjectReference) {
	if pv, ok := r.volume(a.handle); ok {
		if c := pv.Spec.ClaimRef; c != nil {
			out = append(out, &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: c.Namespace, Name: c.Name, UID: c.UID})
		}
		for _, va := range r.attached(pv, a.node) {
			out = append(out, attachmentReference(va))
		}
	}
	if n, ok := one[*corev1.Node](r.nodes, string(a.node)); ok {
		out = append(out, &corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: n.Name, UID: n.UID})
	}
	return out
}

func attachmentReference(a *storagev1.VolumeAttachment) *corev1.ObjectReference {
	return &corev1.ObjectReference{Kind: "VolumeAttachment", APIVersion: storagev1.SchemeGroupVersion.String(), Name: a.Name, UID: a.UID}
}

// sink writes Events, one after the other.
type sink struct {
	ctx  context.Context // of Reporter.Run; record has none of its own
	api  *API
	away time.Time // when the API server did not answer last
}

// settling is how long an API server that was away may refuse what it should not: until it has read the roles it answers FORBIDDEN.
const settling = time.Minute

// write writes until the API server answers: record would give an Event up after some tries, and while it tries one the others wait.
func (s *sink) write(once func() (*corev1.Event, error)) (*corev1.Event, error) {
	for {
		out, err := once()
		if answered(err) || s.ctx.Err() != nil {
			return out, s.tried(err)
		}
		s.away = time.Now()
		pause(s.ctx, eventPatience)
	}
}

// answered says that the API server has had the request, or never will.
func answered(err error) bool {
	_, status := errors.AsType[*apierrors.StatusError](err)
	_, none := errors.AsType[*rest.RequestConstructionError](err)
	return err == nil || status || none || errors.Is(err, ErrForbidden)
}

// tried is err, where a refusal that passes is none that record takes for the server's last word: it is tried again some times.
func (s *sink) tried(err error) error {
	if troubled(err) || apierrors.IsForbidden(err) && time.Since(s.away) < settling {
		return fmt.Errorf("the API server cannot take it now: %s", err.Error())
	}
	return err
}

// troubled says that the API server, or its store, cannot do it at the moment.
func troubled(err error) bool {
	return apierrors.IsInternalError(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsTooManyRequests(err) || apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err)
}

// Create implements record.EventSink.
func (s *sink) Create(e *corev1.Event) (*corev1.Event, error) {
	return s.write(func() (*corev1.Event, error) { return s.api.events(e.Namespace).create(s.ctx, written(e)) })
}

// Patch implements record.EventSink.
func (s *sink) Patch(e *corev1.Event, patch []byte) (*corev1.Event, error) {
	return s.write(func() (*corev1.Event, error) {
		return s.api.events(e.Namespace).patch(s.ctx, e.Name, types.StrategicMergePatchType, json.RawMessage(patch))
	})
}

// Update implements record.EventSink, which does not call it.
func (*sink) Update(*corev1.Event) (*corev1.Event, error) {
	return nil, fmt.Errorf("%w: Events are patched", ErrForbidden)
}

// waiting marks an error that passes.
type waiting struct{ error }

// Waiting marks err as one that passes by itself: for Refused. Its text stays.
func Waiting(err error) error { return waiting{err} }

// Unwrap returns what was marked.
func (w waiting) Unwrap() error { return w.error }

// Refused tells that a ControllerUnpublish of the handle was not answered OK, where the node itself could not: it is away. What the node says
// comes as its notice. An error that passes by itself (see Waiting) is DetachWaiting.
func (r *Reporter) Refused(handle string, node volume.NodeID, cause error) {
	reason, kind := ReasonRefused, corev1.EventTypeWarning
	if _, passes := errors.AsType[waiting](cause); passes {
		reason, kind = ReasonWaiting, corev1.EventTypeNormal
	}
	r.tell(r.named(handle, node), kind, reason, cause.Error())
}

// named is what a call is about: the node of the handle where the call names none.
func (r *Reporter) named(handle string, node volume.NodeID) about {
	if node == "" {
		_, node, _ = volume.ParseHandle(handle)
	}
	return about{handle: handle, node: node}
}
