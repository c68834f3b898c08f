package kube

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/flowcontrol"
)

// Options say how the API server is reached.
type Options struct {
	Kubeconfig string  // empty: from within the cluster, as the pod's service account
	QPS        float32 // optional: DefaultQPS
	Burst      int     // optional: DefaultBurst
	UserAgent  string  // optional: client-go's
	// Requests is called after every request; it may be nil and must not block.
	Requests func(Request)
}

// Defaults of the requests to the API server in a second: what follows a mass detach is Events, and they may wait.
const (
	DefaultQPS   = 20
	DefaultBurst = 40
)

// requestTimeout bounds each request but watches: an API server that hangs is one that is away.
const requestTimeout = 15 * time.Second

// API is the way to the API server. It connects on demand. Safe for concurrent use.
type API struct {
	scheme *runtime.Scheme
	params runtime.ParameterCodec

	core, storage, coordination, discovery rest.Interface
}

// Connect returns the API. An error says that the configuration cannot be used; the API server need not be there.
func Connect(o Options) (*API, error) {
	config, err := clientConfig(o.Kubeconfig)
	if err != nil {
		return nil, err
	}
	return ConnectTo(config, o)
}

func clientConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
		}
		return config, nil
	}
	config, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, fmt.Errorf("no kubeconfig, and not in a cluster: %w", err)
	}
	return config, err
}

// ConnectTo is Connect with a configuration that is at hand; o.Kubeconfig does not count.
func ConnectTo(config *rest.Config, o Options) (*API, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.UserAgent = cmp.Or(o.UserAgent, rest.DefaultKubernetesUserAgent())
	config.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(cmp.Or(o.QPS, DefaultQPS), cmp.Or(o.Burst, DefaultBurst))
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.Timeout = 0 // it would end watches too: see objects
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return guard{next: next, told: o.Requests} })
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	a := &API{scheme: scheme, params: runtime.NewParameterCodec(scheme)}
	return a, a.dial(config, client)
}

func (a *API) dial(config *rest.Config, client *http.Client) error {
	for _, g := range []struct {
		to      *rest.Interface
		path    string
		version schema.GroupVersion
	}{
		{&a.core, "/api", corev1.SchemeGroupVersion},
		{&a.storage, "/apis", storagev1.SchemeGroupVersion},
		{&a.coordination, "/apis", coordinationv1.SchemeGroupVersion},
		{&a.discovery, "/apis", discoveryv1.SchemeGroupVersion},
	} {
		c := rest.CopyConfig(config)
		c.APIPath, c.GroupVersion = g.path, &g.version
		r, err := rest.RESTClientForConfigAndClient(c, client)
		if err != nil {
			return err
		}
		*g.to = r
	}
	return nil
}

// newScheme knows the groups that are used and no other: each one linked in costs memory in every process of this program.
func newScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, storagev1.AddToScheme, coordinationv1.AddToScheme, discoveryv1.AddToScheme} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}
