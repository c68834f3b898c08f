package kubetest

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Object is a typed object of the API.
type Object interface {
	runtime.Object
	metav1.Object
}

// kind is a kind of object that the server knows.
type kind struct {
	version, kind, resource string
	namespaced              bool
	status                  bool // a write of the object leaves its status alone
	of                      func() Object
}

var kinds = []kind{
	{"v1", "Node", "nodes", false, true, func() Object { return &corev1.Node{} }},
	{"v1", "PersistentVolume", "persistentvolumes", false, true, func() Object { return &corev1.PersistentVolume{} }},
	{"v1", "Pod", "pods", true, true, func() Object { return &corev1.Pod{} }},
	{"v1", "Secret", "secrets", true, false, func() Object { return &corev1.Secret{} }},
	{"v1", "Event", "events", true, false, func() Object { return &corev1.Event{} }},
	{"storage.k8s.io/v1", "VolumeAttachment", "volumeattachments", false, true, func() Object { return &storagev1.VolumeAttachment{} }},
	{"storage.k8s.io/v1", "CSINode", "csinodes", false, false, func() Object { return &storagev1.CSINode{} }},
	{"storage.k8s.io/v1", "StorageClass", "storageclasses", false, false, func() Object { return &storagev1.StorageClass{} }},
	{"coordination.k8s.io/v1", "Lease", "leases", true, false, func() Object { return &coordinationv1.Lease{} }},
	{"discovery.k8s.io/v1", "EndpointSlice", "endpointslices", true, false, func() Object { return &discoveryv1.EndpointSlice{} }},
}

func kindOf(o Object) kind {
	for _, k := range kinds {
		if fmt.Sprintf("%T", k.of()) == fmt.Sprintf("%T", o) {
			return k
		}
	}
	panic(fmt.Sprintf("kubetest knows no %T", o))
}

// key names an object.
type key struct{ resource, namespace, name string }

// object is one as JSON has it. Those that are stored are never changed, only replaced.
type object = map[string]any

func meta(o object) object {
	m, _ := o["metadata"].(object)
	if m == nil {
		m = object{}
		o["metadata"] = m
	}
	return m
}

func word(o object, field string) string {
	s, _ := o[field].(string)
	return s
}

func clone(o object) (out object) {
	if err := json.Unmarshal(encode(o), &out); err != nil {
		panic(err)
	}
	return out
}

// change is an entry of the log.
type change struct {
	version uint64
	what    string // ADDED, MODIFIED, DELETED
	key     key
	object  object
}

// Put makes or replaces the object as somebody else, status and all.
func (s *Server) Put(o Object) {
	k := kindOf(o)
	var stored object
	if err := json.Unmarshal(encode(o), &stored); err != nil {
		panic(err)
	}
	stored["apiVersion"], stored["kind"] = k.version, k.kind
	s.mu.Lock()
	defer s.mu.Unlock()
	at := key{k.resource, o.GetNamespace(), o.GetName()}
	if old, ok := s.objects[at]; ok {
		meta(stored)["uid"] = meta(old)["uid"]
	}
	s.store(at, stored)
}

// Remove takes the object away as somebody else.
func (s *Server) Remove(o Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(key{kindOf(o).resource, o.GetNamespace(), o.GetName()})
}

// Get fills o, which has a name and perhaps a namespace, and says whether there is such an object.
func (s *Server) Get(o Object) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	stored, ok := s.objects[key{kindOf(o).resource, o.GetNamespace(), o.GetName()}]
	if !ok {
		return false
	}
	if err := json.Unmarshal(encode(stored), o); err != nil {
		panic(err)
	}
	return true
}

// Events are those that are stored, by reason and message: "DetachRefused PersistentVolumeClaim/data x3: text".
func (s *Server) Events() (out []corev1.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, o := range s.objects {
		if at.resource != "events" {
			continue
		}
		var e corev1.Event
		if err := json.Unmarshal(encode(o), &e); err != nil {
			panic(err)
		}
		out = append(out, e)
	}
	return out
}

// store makes or replaces an object. s.mu is held.
func (s *Server) store(at key, o object) {
	what := "MODIFIED"
	if _, ok := s.objects[at]; !ok {
		what = "ADDED"
	}
	if word(meta(o), "uid") == "" {
		s.uids++
		meta(o)["uid"] = fmt.Sprintf("uid-%d", s.uids)
	}
	if word(meta(o), "creationTimestamp") == "" {
		meta(o)["creationTimestamp"] = now()
	}
	s.objects[at] = o
	s.note(what, at, o)
}

func (s *Server) drop(at key) {
	if o, ok := s.objects[at]; ok {
		delete(s.objects, at)
		s.note("DELETED", at, clone(o))
	}
}

// note gives the object its resourceVersion and tells the watches.
func (s *Server) note(what string, at key, o object) {
	s.version++
	meta(o)["resourceVersion"] = strconv.FormatUint(s.version, 10)
	s.log = append(s.log, change{s.version, what, at, o})
	close(s.changed)
	s.changed = make(chan struct{})
}

// merge is a JSON merge patch (RFC 7396).
func merge(into, patch object) {
	for k, v := range patch {
		inner, isObject := v.(object)
		switch old, wasObject := into[k].(object); {
		case v == nil:
			delete(into, k)
		case isObject && wasObject:
			merge(old, inner)
		case isObject:
			made := object{}
			merge(made, inner)
			into[k] = made
		default:
			into[k] = v
		}
	}
}

// selected says whether the object matches the selectors, of the forms a=b,c=d.
func selected(o object, labels, fields string) bool {
	for _, want := range pairs(labels) {
		have, _ := meta(o)["labels"].(object)
		if word(have, want[0]) != want[1] {
			return false
		}
	}
	for _, want := range pairs(fields) {
		inner, field, _ := strings.Cut(want[0], ".")
		have, _ := o[inner].(object)
		if word(have, field) != want[1] {
			return false
		}
	}
	return true
}

func pairs(selector string) (out [][2]string) {
	for _, p := range strings.FieldsFunc(selector, func(r rune) bool { return r == ',' }) {
		k, v, _ := strings.Cut(p, "=")
		out = append(out, [2]string{k, v})
	}
	return out
}
