package kubetest

import (
	"net/http"
	"strconv"
)

// watch streams changes, after all that is there where the client asks for that, until the client goes.
func (s *Server) watch(w http.ResponseWriter, c call) {
	q := c.URL.Query()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	from, err := strconv.ParseUint(q.Get("resourceVersion"), 10, 64)
	s.mu.Lock()
	first := []object{}
	if q.Get("sendInitialEvents") == "true" || err != nil {
		first, from = s.initial(c), s.version
	}
	s.mu.Unlock()
	for send(w, first) {
		s.mu.Lock()
		var next []object
		next, from = s.since(c, from)
		changed := s.changed
		s.mu.Unlock()
		if first = next; len(first) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-c.Context().Done():
			return
		}
	}
}

// initial is all that is there, and a bookmark that ends it. s.mu is held.
func (s *Server) initial(c call) (out []object) {
	for at, o := range s.objects {
		if c.selects(at, o) {
			out = append(out, object{"type": "ADDED", "object": o})
		}
	}
	mark := object{"kind": c.kind.kind, "apiVersion": c.kind.version, "metadata": object{
		"resourceVersion": strconv.FormatUint(s.version, 10), "annotations": object{"k8s.io/initial-events-end": "true"},
	}}
	return append(out, object{"type": "BOOKMARK", "object": mark})
}

// since is what changed after the version, and the version up to which. s.mu is held.
func (s *Server) since(c call, version uint64) (out []object, until uint64) {
	for _, e := range s.log {
		if e.version > version && c.selects(e.key, e.object) {
			out = append(out, object{"type": e.what, "object": e.object})
		}
	}
	return out, s.version
}

func send(w http.ResponseWriter, events []object) bool {
	for _, e := range events {
		if _, err := w.Write(append(encode(e), '\n')); err != nil {
			return false
		}
	}
	w.(http.Flusher).Flush()
	return true
}
