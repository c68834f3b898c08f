package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/kube/kubetest"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

const (
	driver = "csi.belay.storage"
	space  = "belay-system"
	vol    = volume.ID("pvc-1")
)

// world is a cluster with a true API server over HTTP, real informers, and nodes that say what the test wants. Time is synctest's.
type world struct {
	*testing.T
	server  *kubetest.Server
	api     *API
	cluster *Cluster
	fleet   Fleet
	report  *Reporter
	ctx     context.Context

	mu    sync.Mutex
	peers map[volume.NodeID]*peer
}

// inCluster runs the test in a world with the objects. The server fails it where an attachment is deleted.
func inCluster(t *testing.T, objects []kubetest.Object, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, server: kubetest.New(t), ctx: t.Context(), peers: map[volume.NodeID]*peer{}}
		for _, o := range objects {
			w.server.Put(o)
		}
		w.api = must(ConnectTo(w.server.Config(), Options{QPS: 1000, Burst: 1000}))
		w.cluster = must(NewCluster(Config{API: w.api, Driver: driver, Namespace: space}))
		w.fleet = Fleet{w.cluster}
		w.report = NewReporter(w.cluster, "belay-controller", nil)
		w.run(w.cluster.Run)
		w.run(w.report.Run)
		synctest.Wait()
		test(w)
	})
}

// run runs a controller until the test ends.
func (w *world) run(f func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan struct{})
	go func() { defer close(done); f(ctx) }()
	stop = func() { cancel(); <-done }
	w.Cleanup(stop)
	return stop
}

// settle waits until nothing more happens, for some seconds.
func settle() { time.Sleep(5 * time.Second); synctest.Wait() }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// told lists the Events: "DetachRefused PersistentVolumeClaim/data x2: text".
func (w *world) told() (out []string) {
	for _, e := range w.server.Events() {
		out = append(out, fmt.Sprintf("%s %s/%s x%d: %s", e.Reason, e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Count, e.Message))
	}
	slices.Sort(out)
	return out
}

func (w *world) wants(what string, got, want []string) {
	w.Helper()
	if !slices.Equal(got, want) {
		w.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

// peer is a node's belay.
type peer struct {
	*admin.Board
	mu       sync.Mutex
	away     error
	volumes  []admin.Volume
	why      detach.Report
	forced   []receipt.Receipt
	fenced   []detach.Override
	fenceErr error
	onFence  func()
}

func (w *world) peer(node volume.NodeID) *peer {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.peers[node] == nil {
		w.peers[node] = &peer{Board: admin.NewBoard(node)}
	}
	return w.peers[node]
}

func (w *world) dial(node volume.NodeID) Peer { return w.peer(node) }

func (p *peer) set(f func(p *peer)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
}

func (p *peer) Notices(ctx context.Context, c admin.Cursor) (admin.NoticePage, error) {
	p.mu.Lock()
	away := p.away
	p.mu.Unlock()
	if away != nil {
		return admin.NoticePage{}, away
	}
	return p.Wait(ctx, c)
}

func (p *peer) Volumes(context.Context) (admin.Listing, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return admin.Listing{Volumes: slices.Clone(p.volumes)}, p.away
}

func (p *peer) Why(_ context.Context, v string) (admin.Why, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if string(p.why.Volume.ID) != v && p.away == nil {
		return admin.Why{}, fmt.Errorf("volume %s: %w", v, engine.ErrNotFound)
	}
	return admin.Why{Report: p.why}, p.away
}

func (p *peer) Receipts(context.Context, string) (admin.Receipts, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out admin.Receipts
	for _, r := range p.forced {
		out.Entries = append(out.Entries, admin.ReceiptEntry{Receipt: r})
	}
	return out, p.away
}

// Fence is as the gate is: an epoch is fenced once.
func (p *peer) Fence(_ context.Context, v string, o detach.Override) (receipt.Receipt, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := errors.Join(p.away, p.fenceErr); err != nil {
		return receipt.Receipt{}, err
	}
	for _, r := range p.forced {
		if r.Attachment.Epoch == o.Epoch {
			return receipt.Receipt{}, fmt.Errorf("%w: volume %s needs none", detach.ErrOverride, v)
		}
	}
	p.fenced = append(p.fenced, o)
	r := receipt.Receipt{Kind: receipt.Forced, Attachment: volume.Attachment{Volume: o.Volume, Epoch: o.Epoch}, Actor: o.Actor, Reason: o.Reason, At: time.Now()}
	p.forced = append(p.forced, r)
	if p.onFence != nil {
		p.onFence()
	}
	return r, nil
}

func node(name string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("node-" + name), Labels: map[string]string{"a": "b"}}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for _, f := range change {
		f(n)
	}
	return n
}

func notReadyNode(n *corev1.Node) {
	n.Status.Conditions[0] = corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown",
		LastTransitionTime: metav1.Date(2026, 11, 26, 2, 0, 0, 0, time.UTC)}
}

func taint(key string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Value: "nodeshutdown", Effect: effect})
	}
}

func csiNode(name string, drivers ...string) *storagev1.CSINode {
	c := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, d := range drivers {
		c.Spec.Drivers = append(c.Spec.Drivers, storagev1.CSINodeDriver{Name: d, NodeID: name})
	}
	return c
}

// endpoints is a slice of the nodes' Service: node to address, those in ready are.
func endpoints(name string, addresses map[string]string, ready ...string) *discoveryv1.EndpointSlice {
	port, portName := int32(9811), DefaultPort
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Namespace: space, Labels: map[string]string{discoveryv1.LabelServiceName: DefaultService}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
	}
	for _, n := range slices.Sorted(maps.Keys(addresses)) {
		is := slices.Contains(ready, n)
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{addresses[n]}, NodeName: &n, Conditions: discoveryv1.EndpointConditions{Ready: &is}})
	}
	return s
}

func persistent(name, handle string, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
	pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: handle}
	pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "shop", Name: "data", UID: "claim-1"}
	pv.Spec.StorageClassName = "belay"
	for _, f := range change {
		f(pv)
	}
	return pv
}

func attachment(name, pv, node string, annotations map[string]string) *storagev1.VolumeAttachment {
	return &storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations, Finalizers: []string{"external-attacher/csi-belay-storage"}},
		Spec:       storagev1.VolumeAttachmentSpec{Attacher: driver, NodeName: node, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &pv}},
		Status:     storagev1.VolumeAttachmentStatus{Attached: true},
	}
}

// oneNode is a cluster with a node n1 and a volume that is attached to it.
func oneNode() []kubetest.Object {
	return []kubetest.Object{
		node("n1"), csiNode("n1", driver), endpoints("belay-node-1", map[string]string{"n1": "10.0.0.1"}, "n1"),
		persistent("pv-1", "pvc-1@n1"), attachment("csi-1", "pv-1", "n1", nil),
	}
}

func persistentOf(name, other string) *corev1.PersistentVolume {
	return persistent(name, "vol-1", func(pv *corev1.PersistentVolume) { pv.Spec.CSI.Driver = other })
}
