package kube

import (
	"context"
	"encoding/json"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// objects are those of one kind, in a namespace or cluster-wide. There is no way to delete one here: see Restarts for the only delete.
type objects[T runtime.Object] struct {
	client              rest.Interface
	resource, namespace string
	params              runtime.ParameterCodec
	object              func() T
	list                func() runtime.Object
}

func (a *API) nodes() objects[*corev1.Node] {
	return objects[*corev1.Node]{a.core, "nodes", "", a.params, fresh[corev1.Node], list[corev1.NodeList]}
}

func (a *API) volumes() objects[*corev1.PersistentVolume] {
	return objects[*corev1.PersistentVolume]{a.core, "persistentvolumes", "", a.params, fresh[corev1.PersistentVolume], list[corev1.PersistentVolumeList]}
}

func (a *API) pods(namespace string) objects[*corev1.Pod] {
	return objects[*corev1.Pod]{a.core, "pods", namespace, a.params, fresh[corev1.Pod], list[corev1.PodList]}
}

func (a *API) secrets(namespace string) objects[*corev1.Secret] {
	return objects[*corev1.Secret]{a.core, "secrets", namespace, a.params, fresh[corev1.Secret], list[corev1.SecretList]}
}

func (a *API) events(namespace string) objects[*corev1.Event] {
	return objects[*corev1.Event]{a.core, "events", namespace, a.params, fresh[corev1.Event], list[corev1.EventList]}
}

func (a *API) attachments() objects[*storagev1.VolumeAttachment] {
	return objects[*storagev1.VolumeAttachment]{a.storage, "volumeattachments", "", a.params, fresh[storagev1.VolumeAttachment], list[storagev1.VolumeAttachmentList]}
}

func (a *API) csiNodes() objects[*storagev1.CSINode] {
	return objects[*storagev1.CSINode]{a.storage, "csinodes", "", a.params, fresh[storagev1.CSINode], list[storagev1.CSINodeList]}
}

func (a *API) classes() objects[*storagev1.StorageClass] {
	return objects[*storagev1.StorageClass]{a.storage, "storageclasses", "", a.params, fresh[storagev1.StorageClass], list[storagev1.StorageClassList]}
}

func (a *API) leases(namespace string) objects[*coordinationv1.Lease] {
	return objects[*coordinationv1.Lease]{a.coordination, "leases", namespace, a.params, fresh[coordinationv1.Lease], list[coordinationv1.LeaseList]}
}

func (a *API) slices(namespace string) objects[*discoveryv1.EndpointSlice] {
	return objects[*discoveryv1.EndpointSlice]{a.discovery, "endpointslices", namespace, a.params, fresh[discoveryv1.EndpointSlice], list[discoveryv1.EndpointSliceList]}
}

func fresh[T any]() *T { return new(T) }

func list[T any, P interface {
	*T
	runtime.Object
}]() runtime.Object {
	return P(new(T))
}

// get reads the object from the API server, not from a cache.
func (o objects[T]) get(ctx context.Context, name string) (T, error) {
	out := o.object()
	err := o.client.Get().NamespaceIfScoped(o.namespace, o.namespace != "").Resource(o.resource).Name(name).Timeout(requestTimeout).Do(ctx).Into(out)
	return out, err
}

func (o objects[T]) create(ctx context.Context, object T) (T, error) {
	out := o.object()
	err := o.client.Post().NamespaceIfScoped(o.namespace, o.namespace != "").Resource(o.resource).Timeout(requestTimeout).Body(object).Do(ctx).Into(out)
	return out, err
}

// update writes the object where its resourceVersion still holds.
func (o objects[T]) update(ctx context.Context, name string, object T) (T, error) {
	out := o.object()
	err := o.client.Put().NamespaceIfScoped(o.namespace, o.namespace != "").Resource(o.resource).Name(name).Timeout(requestTimeout).Body(object).Do(ctx).Into(out)
	return out, err
}

func (o objects[T]) patch(ctx context.Context, name string, kind types.PatchType, patch any, subresources ...string) (T, error) {
	out := o.object()
	body, err := json.Marshal(patch)
	if err != nil {
		return out, err
	}
	err = o.client.Patch(kind).NamespaceIfScoped(o.namespace, o.namespace != "").Resource(o.resource).Name(name).SubResource(subresources...).
		Timeout(requestTimeout).Body(body).Do(ctx).Into(out)
	return out, err
}

// find lists what the options select, from the API server.
func (o objects[T]) find(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	out := o.list()
	err := o.client.Get().NamespaceIfScoped(o.namespace, o.namespace != "").Resource(o.resource).VersionedParams(&options, o.params).
		Timeout(requestTimeout).Do(ctx).Into(out)
	return out, err
}

func (o objects[T]) watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	options.Watch = true
	r := o.client.Get().NamespaceIfScoped(o.namespace, o.namespace != "").Resource(o.resource).VersionedParams(&options, o.params)
	if s := options.TimeoutSeconds; s != nil {
		r = r.Timeout(time.Duration(*s) * time.Second)
	}
	return r.Watch(ctx)
}

// source is the objects that the label selector, empty for all, selects, for an informer.
func (o objects[T]) source(labels string) cache.ListerWatcher {
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.LabelSelector = labels
			return o.find(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.LabelSelector = labels
			return o.watch(ctx, options)
		},
	}
	return lw
}
