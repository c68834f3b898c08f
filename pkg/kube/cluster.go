package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/belay-storage/belay/pkg/volume"
)

// Config is what a Cluster needs. Required unless said otherwise.
type Config struct {
	API       *API
	Driver    string       // CSI name
	Namespace string       // of Belay itself
	Service   string       // the headless Service of the nodes; optional: DefaultService
	Port      string       // its port's name; optional: DefaultPort
	Log       *slog.Logger // optional: silent
}

// Names that the manifests use.
const (
	DefaultService = "belay-node"
	DefaultPort    = "cluster"
)

func (c Config) withDefaults() (Config, error) {
	if c.API == nil || c.Driver == "" || c.Namespace == "" {
		return c, errors.New("kube: Config: API, Driver and Namespace are required")
	}
	c.Service, c.Port = cmp.Or(c.Service, DefaultService), cmp.Or(c.Port, DefaultPort)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// ErrNotRead is wrapped by answers that are not known yet: the API server has not been heard since the start.
var ErrNotRead = errors.New("the cluster's objects have not been read yet")

// Cluster is what is known of the cluster's objects, from caches that follow the API server and go on answering while it is
// away. Safe for concurrent use.
type Cluster struct {
	Config
	nodes, csiNodes, slices, attachments, volumes cache.SharedIndexInformer
}

// Indexes of the caches.
const (
	byHandle = "handle" // PersistentVolumes, by CSI volume handle
	byVolume = "volume" // VolumeAttachments, by name of the PersistentVolume
	byNode   = "node"   // VolumeAttachments, EndpointSlices and PersistentVolumes, by name of the node
)

// NewCluster returns a cluster; Run starts it.
func NewCluster(c Config) (*Cluster, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	k := &Cluster{Config: c}
	k.nodes = follow(k, c.API.nodes().source(""), k.slimNode, nil)
	k.csiNodes = follow(k, c.API.csiNodes().source(""), slim[*storagev1.CSINode], nil)
	k.slices = follow(k, c.API.slices(c.Namespace).source(discoveryv1.LabelServiceName+"="+c.Service), slim[*discoveryv1.EndpointSlice],
		cache.Indexers{byNode: index(nodesOfSlice)})
	k.attachments = follow(k, c.API.attachments().source(""), k.slimAttachment, cache.Indexers{byVolume: index(k.volumeOf), byNode: index(k.nodeOf)})
	k.volumes = follow(k, c.API.volumes().source(""), k.slimVolume, cache.Indexers{byHandle: index(k.handleOf), byNode: index(k.homeOf)})
	return k, nil
}

// Run follows the API server until ctx ends.
func (k *Cluster) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, i := range k.informers() {
		all.Go(func() { i.RunWithContext(ctx) })
	}
	all.Wait()
}

func (k *Cluster) informers() []cache.SharedIndexInformer {
	return []cache.SharedIndexInformer{k.nodes, k.csiNodes, k.slices, k.attachments, k.volumes}
}

// Wait returns when everything has been read once, or with ErrNotRead when ctx ends.
func (k *Cluster) Wait(ctx context.Context) error {
	for _, i := range k.informers() {
		if !cache.WaitForCacheSync(ctx.Done(), i.HasSynced) {
			return fmt.Errorf("%w: %w", ErrNotRead, ctx.Err())
		}
	}
	return nil
}

func (k *Cluster) read() bool {
	for _, i := range k.informers() {
		if !i.HasSynced() {
			return false
		}
	}
	return true
}

// follow returns an informer of the objects of the source, of which slimmer keeps what is needed.
func follow[T runtime.Object](k *Cluster, source cache.ListerWatcher, slimmer func(T) T, indexers cache.Indexers) cache.SharedIndexInformer {
	var example T
	i := cache.NewSharedIndexInformerWithOptions(source, example, cache.SharedIndexInformerOptions{Indexers: indexers})
	err := errors.Join(i.SetTransform(func(o any) (any, error) {
		if t, ok := o.(T); ok {
			return slimmer(t), nil
		}
		return o, nil
	}), i.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		k.Log.Warn("the API server is not heard; what was read before is used", "kind", fmt.Sprintf("%T", example), "error", err)
	}))
	if err != nil {
		panic(err) // only an informer that runs refuses
	}
	return i
}

func index[T any](of func(T) []string) cache.IndexFunc {
	return func(o any) ([]string, error) {
		if t, ok := o.(T); ok {
			return of(t), nil
		}
		return nil, nil
	}
}

// some returns the objects of an index.
func some[T any](i cache.SharedIndexInformer, name, value string) (out []T) {
	found, err := i.GetIndexer().ByIndex(name, value)
	if err != nil {
		panic(err) // only an index that does not exist fails
	}
	for _, o := range found {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	return out
}

// one returns the object of the name.
func one[T any](i cache.SharedIndexInformer, name string) (out T, ok bool) {
	o, found, err := i.GetStore().GetByKey(name)
	if err != nil || !found {
		return out, false
	}
	out, ok = o.(T)
	return out, ok
}

func slim[T metav1.Object](o T) T {
	o.SetManagedFields(nil)
	o.SetLabels(nil)
	return o
}

func (k *Cluster) slimNode(n *corev1.Node) *corev1.Node {
	own, had := n.Labels[k.topologyLabel()]
	n = slim(n)
	if had {
		n.Labels = map[string]string{k.topologyLabel(): own}
	}
	n.Annotations = nil
	n.Spec = corev1.NodeSpec{Taints: n.Spec.Taints}
	n.Status = corev1.NodeStatus{Conditions: n.Status.Conditions}
	return n
}

// slimAttachment keeps of attachments that are others' the name only.
func (k *Cluster) slimAttachment(a *storagev1.VolumeAttachment) *storagev1.VolumeAttachment {
	a = slim(a)
	if a.Spec.Attacher != k.Driver {
		return &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: a.Name, ResourceVersion: a.ResourceVersion}}
	}
	return a
}

// slimVolume keeps of volumes that are others' the name only.
func (k *Cluster) slimVolume(v *corev1.PersistentVolume) *corev1.PersistentVolume {
	v = slim(v)
	if v.Spec.CSI == nil || v.Spec.CSI.Driver != k.Driver {
		return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: v.Name, ResourceVersion: v.ResourceVersion}}
	}
	return v
}

func (k *Cluster) volumeOf(a *storagev1.VolumeAttachment) []string {
	if a.Spec.Attacher != k.Driver || a.Spec.Source.PersistentVolumeName == nil {
		return nil
	}
	return []string{*a.Spec.Source.PersistentVolumeName}
}

func (k *Cluster) nodeOf(a *storagev1.VolumeAttachment) []string {
	if a.Spec.Attacher != k.Driver {
		return nil
	}
	return []string{a.Spec.NodeName}
}

func (k *Cluster) handleOf(v *corev1.PersistentVolume) []string {
	if v.Spec.CSI == nil || v.Spec.CSI.Driver != k.Driver {
		return nil
	}
	return []string{v.Spec.CSI.VolumeHandle}
}

// homeOf is the node that the volume lives on.
func (k *Cluster) homeOf(v *corev1.PersistentVolume) []string {
	for _, h := range k.handleOf(v) {
		if _, node, err := volume.ParseHandle(h); err == nil && node != "" {
			return []string{string(node)}
		}
	}
	return nil
}

// handles are the names that the volume may have in the cluster, the likely one first.
func handles(id volume.ID, node volume.NodeID) (out []string) {
	if h, err := volume.Handle(id, node); err == nil {
		out = append(out, h)
	}
	return append(out, string(id))
}
