package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// ErrForbidden is wrapped by the error of every request that this program must not make. Nothing was sent.
var ErrForbidden = errors.New("belay never does this")

// Request is a request that was made, for metrics: what and not which.
type Request struct {
	Method   string
	Resource string // "volumeattachments", "nodes/status"
	Code     int    // of the answer, 0 where there was none
	Took     time.Duration
}

// guard lets through what reads, and the writes that are in the table. It is the last wall: whatever the code above comes to, no
// VolumeAttachment is deleted and no finalizer is taken away.
type guard struct {
	next http.RoundTripper
	told func(Request)
}

// write is a kind of write that may be made.
type write struct {
	method, group, resource string
	check                   func(r target, body []byte) error // nil: any body
}

// writes are all that this package writes. The manifests' RBAC allows no more.
var writes = []write{
	{http.MethodPost, "", "events", nil},
	{http.MethodPatch, "", "events", nil},
	{http.MethodPatch, "", "nodes/status", nil},
	{http.MethodPatch, "storage.k8s.io", "volumeattachments", onlyAnnotations},
	{http.MethodDelete, "", "pods", withItsOwnGrace},
	{http.MethodPost, "coordination.k8s.io", "leases", nil},
	{http.MethodPut, "coordination.k8s.io", "leases", nil},
	{http.MethodPut, "", "secrets", nil},
}

// RoundTrip sends the request, or returns ErrForbidden.
func (g guard) RoundTrip(r *http.Request) (*http.Response, error) {
	t := parseTarget(r.URL)
	body, err := peek(r)
	if err == nil {
		err = permitted(r.Method, t, body)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", r.Method, r.URL.Path, err)
	}
	start := time.Now()
	answer, err := g.next.RoundTrip(r)
	if g.told != nil {
		q := Request{Method: r.Method, Resource: t.resource, Took: time.Since(start)}
		if err == nil {
			q.Code = answer.StatusCode
		}
		g.told(q)
	}
	return answer, err
}

// peek returns the body of r, which still has it.
func peek(r *http.Request) ([]byte, error) {
	if r.Body == nil {
		return nil, nil
	}
	b, err := io.ReadAll(r.Body)
	err = errors.Join(err, r.Body.Close())
	r.Body = io.NopCloser(bytes.NewReader(b))
	return b, err
}

func permitted(method string, t target, body []byte) error {
	if method == http.MethodGet {
		return nil
	}
	for _, w := range writes {
		if w.method != method || w.group != t.group || w.resource != t.resource {
			continue
		}
		if method != http.MethodPost && t.name == "" {
			return fmt.Errorf("%w: it names no object", ErrForbidden)
		}
		if w.check == nil {
			return nil
		}
		return w.check(t, body)
	}
	return fmt.Errorf("%w: no such write is in its table", ErrForbidden)
}

// target is what a URL of the API names.
type target struct {
	group, resource, name string // resource with its subresource
	query                 url.Values
}

// parseTarget reads /api/v1/… and /apis/GROUP/VERSION/…, with or without a namespace.
func parseTarget(u *url.URL) (t target) {
	t.query = u.Query()
	parts := strings.Split(strings.Trim(u.Path, "/"), "/")
	switch {
	case len(parts) > 2 && parts[0] == "api":
		parts = parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		t.group, parts = parts[1], parts[3:]
	default:
		return t
	}
	if len(parts) > 2 && parts[0] == "namespaces" {
		parts = parts[2:]
	}
	t.resource = parts[0]
	if len(parts) > 1 {
		t.name = parts[1]
	}
	if len(parts) > 2 {
		t.resource += "/" + strings.Join(parts[2:], "/")
	}
	return t
}

// onlyAnnotations lets a patch through that changes annotations of ours, and of nothing else.
func onlyAnnotations(_ target, body []byte) error {
	var patch struct {
		Metadata struct {
			UID             string             `json:"uid"`
			ResourceVersion string             `json:"resourceVersion"`
			Annotations     map[string]*string `json:"annotations"`
		} `json:"metadata"`
	}
	if err := strictly(body, &patch); err != nil {
		return err
	}
	if patch.Metadata.UID == "" || patch.Metadata.ResourceVersion == "" {
		return fmt.Errorf("%w: the patch does not say of which object it is", ErrForbidden)
	}
	for key := range patch.Metadata.Annotations {
		if !slices.Contains([]string{AnnotationOverride, AnnotationOverrideResult, AnnotationRestart}, key) {
			return fmt.Errorf("%w: annotation %s is not its own", ErrForbidden, key)
		}
	}
	return nil
}

// withItsOwnGrace lets the delete of a pod through that says which pod, as it was looked at, and leaves the time to the pod itself.
func withItsOwnGrace(t target, body []byte) error {
	for key := range t.query { // options can be given there as well
		if key != "timeout" {
			return fmt.Errorf("%w: option %s in the address", ErrForbidden, key)
		}
	}
	var options struct {
		Kind          string `json:"kind"`
		APIVersion    string `json:"apiVersion"`
		Preconditions struct {
			UID             string `json:"uid"`
			ResourceVersion string `json:"resourceVersion"`
		} `json:"preconditions"`
	}
	if err := strictly(body, &options); err != nil {
		return err
	}
	if p := options.Preconditions; p.UID == "" || p.ResourceVersion == "" {
		return fmt.Errorf("%w: the delete does not say which pod was looked at", ErrForbidden)
	}
	return nil
}

// strictly decodes an object that has no other fields than into.
func strictly(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	if d.More() {
		return fmt.Errorf("%w: more than one object", ErrForbidden)
	}
	return nil
}
