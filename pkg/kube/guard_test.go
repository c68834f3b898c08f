package kube

import (
	"context"
	"errors"
	"testing"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/belay-storage/belay/pkg/kube/kubetest"
)

// request is one that code of this package could come to make by mistake.
type request func(ctx context.Context, a *API) error

func deleting(verb *rest.Request) error { return verb.Do(context.Background()).Error() }

func patching(kind types.PatchType, body string, sub ...string) request {
	return func(ctx context.Context, a *API) error {
		return a.storage.Patch(kind).Resource("volumeattachments").Name("csi-1").SubResource(sub...).Body([]byte(body)).Do(ctx).Error()
	}
}

func podDelete(body, query string) request {
	return func(ctx context.Context, a *API) error {
		r := a.core.Delete().Namespace("shop").Resource("pods").Name("web-0").Body([]byte(body))
		if query != "" {
			r = r.Param(query, "0")
		}
		return r.Do(ctx).Error()
	}
}

const (
	preconditions = `"preconditions":{"uid":"u","resourceVersion":"1"}`
	identity      = `"uid":"u","resourceVersion":"1"`
)

// TestGuardStopsWhatMustNeverBeSent: whatever code comes to be written, these requests fail and nothing reaches the API server.
func TestGuardStopsWhatMustNeverBeSent(t *testing.T) {
	for name, do := range map[string]request{
		"delete of an attachment": func(_ context.Context, a *API) error {
			return deleting(a.storage.Delete().Resource("volumeattachments").Name("csi-1"))
		},
		"delete of all attachments": func(_ context.Context, a *API) error {
			return deleting(a.storage.Delete().Resource("volumeattachments"))
		},
		"delete by absolute path": func(_ context.Context, a *API) error {
			return deleting(a.core.Delete().AbsPath("/apis/storage.k8s.io/v1/volumeattachments/csi-1"))
		},
		"delete of an older version": func(_ context.Context, a *API) error {
			return deleting(a.core.Delete().AbsPath("/apis/storage.k8s.io/v1beta1/volumeattachments/csi-1"))
		},
		"delete through pods": func(_ context.Context, a *API) error {
			return deleting(a.core.Delete().AbsPath("/api/v1/namespaces/a/pods/b/../../../../../../apis/storage.k8s.io/v1/volumeattachments/csi-1"))
		},
		"delete of a node": func(_ context.Context, a *API) error { return deleting(a.core.Delete().Resource("nodes").Name("n1")) },
		"delete of a claim": func(_ context.Context, a *API) error {
			return deleting(a.core.Delete().Namespace("shop").Resource("persistentvolumeclaims").Name("data"))
		},
		"delete of a namespace": func(_ context.Context, a *API) error {
			return deleting(a.core.Delete().AbsPath("/api/v1/namespaces/pods"))
		},
		"delete of all pods": func(_ context.Context, a *API) error {
			return deleting(a.core.Delete().Namespace("shop").Resource("pods").Body([]byte(`{` + preconditions + `}`)))
		},
		"update of an attachment": func(ctx context.Context, a *API) error {
			_, err := a.attachments().update(ctx, "csi-1", attachment("csi-1", "pv-1", "n1", nil))
			return err
		},
		"create of an attachment": func(ctx context.Context, a *API) error {
			_, err := a.attachments().create(ctx, attachment("csi-2", "pv-1", "n1", nil))
			return err
		},
		"finalizers away":              patching(types.MergePatchType, `{"metadata":{`+identity+`,"finalizers":null}}`),
		"finalizers away, in capitals": patching(types.MergePatchType, `{"metadata":{`+identity+`,"Finalizers":[]}}`),
		"finalizers, strategic":        patching(types.StrategicMergePatchType, `{"metadata":{`+identity+`,"$deleteFromPrimitiveList/finalizers":["x"]}}`),
		"finalizers, JSON patch":       patching(types.JSONPatchType, `[{"op":"remove","path":"/metadata/finalizers"}]`),
		"finalizers, apply":            patching(types.ApplyPatchType, "metadata: {finalizers: []}"),
		"finalizers after an object":   patching(types.MergePatchType, `{"metadata":{`+identity+`}} {"metadata":{"finalizers":null}}`),
		"status":                       patching(types.MergePatchType, `{"status":{"attached":false}}`, "status"),
		"status in the object":         patching(types.MergePatchType, `{"metadata":{`+identity+`},"status":{"attached":false}}`),
		"annotation of others":         patching(types.MergePatchType, `{"metadata":{`+identity+`,"annotations":{"csi.alpha.kubernetes.io/node-id":"x"}}}`),
		"whichever attachment it is":   patching(types.MergePatchType, `{"metadata":{"annotations":{"belay.storage/override":null}}}`),
		"force":                        podDelete(`{"gracePeriodSeconds":0,`+preconditions+`}`, ""),
		"force in the address":         podDelete(`{`+preconditions+`}`, "gracePeriodSeconds"),
		"a grace period of ours":       podDelete(`{"gracePeriodSeconds":600,`+preconditions+`}`, ""),
		"whichever pod it is":          podDelete(`{}`, ""),
		"whatever the pod is now":      podDelete(`{"preconditions":{"uid":"u"}}`, ""),
		"eviction": func(ctx context.Context, a *API) error {
			return a.core.Post().Namespace("shop").Resource("pods").Name("web-0").SubResource("eviction").Body([]byte(`{}`)).Do(ctx).Error()
		},
		"spec of a node": func(ctx context.Context, a *API) error {
			_, err := a.nodes().patch(ctx, "n1", types.MergePatchType, map[string]any{})
			return err
		},
		"volumes": func(ctx context.Context, a *API) error {
			_, err := a.volumes().patch(ctx, "pv-1", types.MergePatchType, map[string]any{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, oneNode(), func(w *world) {
				if err := do(w.ctx, w.api); !errors.Is(err, ErrForbidden) {
					t.Errorf("want ErrForbidden, got %v", err)
				}
				if sent := w.server.Requests(kubetest.Request.Writes); len(sent) > 0 {
					t.Errorf("it was sent: %v", sent)
				}
			})
		})
	}
}

// TestGuardLetsThroughAndTells: what is in the table is sent, whole, and each request is told of.
func TestGuardLetsThroughAndTells(t *testing.T) {
	inCluster(t, oneNode(), func(w *world) {
		var told []Request
		a := must(ConnectTo(w.server.Config(), Options{Requests: func(r Request) { told = append(told, r) }}))
		va := must(a.attachments().get(w.ctx, "csi-1"))
		k := Cluster{Config: Config{API: a}}
		if err := k.annotate(w.ctx, va, map[string]any{AnnotationOverrideResult: "x"}); err != nil {
			t.Fatal(err)
		}
		if got := must(a.attachments().get(w.ctx, "csi-1")); got.Annotations[AnnotationOverrideResult] != "x" || len(got.Finalizers) != 1 {
			t.Errorf("the attachment is %v", got)
		}
		if len(told) != 3 || told[1].Method != "PATCH" || told[1].Resource != "volumeattachments" || told[1].Code != 200 {
			t.Errorf("told of %v", told)
		}
	})
}
