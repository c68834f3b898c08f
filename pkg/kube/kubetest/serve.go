package kubetest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// call is a request that was understood.
type call struct {
	*http.Request
	kind   kind
	at     key
	status bool // it names the subresource
	body   []byte
}

// failure is an answer that refuses, as the API server says it.
type failure struct {
	code   int
	reason string
	text   string
}

var (
	notFound = failure{http.StatusNotFound, "NotFound", "not found"}
	conflict = failure{http.StatusConflict, "Conflict", "the object has been modified"}
)

// Error implements error.
func (f failure) Error() string { return f.text }

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := parse(r)
	seen := s.record(r, c)
	if err != nil {
		s.answer(w, seen, 0, nil, err)
		return
	}
	if r.Method == http.MethodGet && r.URL.Query().Get("watch") == "true" {
		s.watch(w, c)
		return
	}
	s.mu.Lock()
	code, out, err := s.serve(c)
	s.mu.Unlock()
	s.answer(w, seen, code, out, err)
}

func (s *Server) record(r *http.Request, c call) int {
	seen := Request{Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Type: r.Header.Get("Content-Type"), Body: string(c.body), Resource: c.at.resource}
	if c.status {
		seen.Resource += "/status"
	}
	s.mu.Lock()
	s.requests = append(s.requests, seen)
	n, before := len(s.requests)-1, s.before
	s.mu.Unlock()
	if before != nil {
		before(seen)
	}
	return n
}

func (s *Server) answer(w http.ResponseWriter, seen, code int, out object, err error) {
	if err != nil {
		f, ok := err.(failure)
		if !ok {
			f = failure{http.StatusBadRequest, "BadRequest", err.Error()}
		}
		code = f.code
		out = object{"kind": "Status", "apiVersion": "v1", "metadata": object{}, "status": "Failure", "reason": f.reason, "message": f.text, "code": f.code}
	}
	s.mu.Lock()
	s.requests[seen].Code = code
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(encode(out)) // who asked may have gone
}

func parse(r *http.Request) (c call, err error) {
	c.Request = r
	if c.body, err = io.ReadAll(r.Body); err != nil {
		return c, err
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	version := ""
	switch {
	case len(parts) > 2 && parts[0] == "api":
		version, parts = parts[1], parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		version, parts = parts[1]+"/"+parts[2], parts[3:]
	default:
		return c, notFound
	}
	if len(parts) > 2 && parts[0] == "namespaces" {
		c.at.namespace, parts = parts[1], parts[2:]
	}
	c.at.resource = parts[0]
	if len(parts) > 1 {
		c.at.name = parts[1]
	}
	c.status = len(parts) > 2 && parts[2] == "status"
	for _, k := range kinds {
		if k.version == version && k.resource == parts[0] && len(parts) <= 3 && (len(parts) < 3 || c.status && k.status) {
			c.kind = k
			return c, nil
		}
	}
	return c, notFound
}

// serve does all but watches. s.mu is held.
func (s *Server) serve(c call) (int, object, error) {
	switch {
	case c.Method == http.MethodPost && c.at.name == "":
		return s.create(c)
	case c.Method == http.MethodGet && c.at.name == "":
		return http.StatusOK, s.list(c), nil
	}
	old, ok := s.objects[c.at]
	if !ok {
		return 0, nil, notFound
	}
	switch c.Method {
	case http.MethodGet:
		return http.StatusOK, old, nil
	case http.MethodPut:
		var o object
		if err := json.Unmarshal(c.body, &o); err != nil {
			return 0, nil, err
		}
		return s.replace(c, old, o)
	case http.MethodPatch:
		o, err := patched(c, old)
		if err != nil {
			return 0, nil, err
		}
		return s.replace(c, old, o)
	case http.MethodDelete:
		return s.remove(c, old)
	}
	return 0, nil, failure{http.StatusMethodNotAllowed, "MethodNotAllowed", c.Method}
}

func (s *Server) create(c call) (int, object, error) {
	var o object
	if err := json.Unmarshal(c.body, &o); err != nil {
		return 0, nil, err
	}
	c.at.name = word(meta(o), "name")
	if word(meta(o), "resourceVersion") != "" {
		return 0, nil, fmt.Errorf("resourceVersion should not be set on objects to be created")
	}
	if _, there := s.objects[c.at]; there {
		return 0, nil, failure{http.StatusConflict, "AlreadyExists", c.at.name + " already exists"}
	}
	o["apiVersion"], o["kind"] = c.kind.version, c.kind.kind
	s.store(c.at, o)
	return http.StatusCreated, o, nil
}

func (s *Server) list(c call) object {
	items := []object{}
	for at, o := range s.objects {
		if c.selects(at, o) {
			items = append(items, o)
		}
	}
	return object{"kind": c.kind.kind + "List", "apiVersion": c.kind.version, "metadata": object{"resourceVersion": strconv.FormatUint(s.version, 10)}, "items": items}
}

func (c call) selects(at key, o object) bool {
	q := c.URL.Query()
	return at.resource == c.at.resource && (c.at.namespace == "" || at.namespace == c.at.namespace) && selected(o, q.Get("labelSelector"), q.Get("fieldSelector"))
}

func patched(c call, old object) (out object, err error) {
	var patch object
	if err := json.Unmarshal(c.body, &patch); err != nil {
		return nil, err
	}
	switch t := c.Header.Get("Content-Type"); t {
	case "application/merge-patch+json":
		out = clone(old)
		merge(out, patch)
		return out, nil
	case "application/strategic-merge-patch+json":
		b, err := strategicpatch.StrategicMergePatch(encode(old), c.body, c.kind.of())
		if err != nil {
			return nil, err
		}
		return out, json.Unmarshal(b, &out)
	default:
		return nil, failure{http.StatusUnsupportedMediaType, "UnsupportedMediaType", t}
	}
}

// replace stores o where the resourceVersion and UID that it names, if any, are those of old.
func (s *Server) replace(c call, old, o object) (int, object, error) {
	for _, field := range []string{"resourceVersion", "uid"} {
		if want := word(meta(o), field); want != "" && want != word(meta(old), field) {
			return 0, nil, conflict
		}
	}
	for _, field := range []string{"uid", "name", "namespace", "creationTimestamp"} {
		if v, ok := meta(old)[field]; ok {
			meta(o)[field] = v
		}
	}
	switch {
	case c.status:
		o = merged(old, "status", o)
	case c.kind.status:
		o = merged(o, "status", old)
	}
	if string(encode(o)) != string(encode(old)) {
		s.store(c.at, o)
	}
	return http.StatusOK, s.objects[c.at], nil
}

// merged is o with a field of another.
func merged(o object, field string, of object) object {
	out := clone(o)
	if v, ok := of[field]; ok {
		out[field] = v
	} else {
		delete(out, field)
	}
	return out
}

func (s *Server) remove(c call, old object) (int, object, error) {
	var options struct {
		GracePeriodSeconds *int64
		Preconditions      struct{ UID, ResourceVersion string }
	}
	if len(c.body) > 0 {
		if err := json.Unmarshal(c.body, &options); err != nil {
			return 0, nil, err
		}
	}
	p := options.Preconditions
	if p.UID != "" && p.UID != word(meta(old), "uid") || p.ResourceVersion != "" && p.ResourceVersion != word(meta(old), "resourceVersion") {
		return 0, nil, conflict
	}
	if c.kind.kind != "Pod" {
		s.drop(c.at)
		return http.StatusOK, old, nil
	}
	return s.end(c, old, options.GracePeriodSeconds)
}

// end has the pod terminate, as its kubelet will when its time has come.
func (s *Server) end(c call, old object, grace *int64) (int, object, error) {
	o := clone(old)
	spec, _ := o["spec"].(object)
	seconds, ok := spec["terminationGracePeriodSeconds"].(float64)
	if !ok {
		seconds = 30
	}
	if grace != nil {
		seconds = float64(*grace)
	}
	if seconds == 0 {
		s.drop(c.at)
		return http.StatusOK, old, nil
	}
	if word(meta(o), "deletionTimestamp") == "" {
		meta(o)["deletionTimestamp"], meta(o)["deletionGracePeriodSeconds"] = now(), seconds
		s.store(c.at, o)
	}
	return http.StatusOK, s.objects[c.at], nil
}
