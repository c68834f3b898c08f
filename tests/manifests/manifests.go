// Package manifests reads the manifests of deploy/ and holds their rules as plain tests: what Belay may do in a cluster, and what keeps devices
// from being taken away. It needs neither helm nor a cluster.
package manifests

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Object is one object of a manifest, as YAML has it.
type Object map[string]any

// Read returns the objects of all YAML files in dir that are resources, not kustomize's own.
func Read(dir string) ([]Object, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	var all []Object
	for _, name := range names {
		objects, err := ReadFile(name)
		if err != nil {
			return nil, err
		}
		for _, o := range objects {
			if !strings.HasPrefix(o.Text("apiVersion"), "kustomize.config.k8s.io/") {
				all = append(all, o)
			}
		}
	}
	return all, nil
}

// ReadFile returns the objects of one file. A key that is there twice is an error.
func ReadFile(name string) ([]Object, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var all []Object
	for d := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var o Object
		err := d.Decode(&o)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if len(o) > 0 {
			all = append(all, o)
		}
	}
}

// At returns what lies at the path of keys, nil where nothing does.
func (o Object) At(path ...string) any {
	var at any = o
	for _, key := range path {
		switch m := at.(type) {
		case Object:
			at = m[key]
		case map[string]any:
			at = m[key]
		default:
			return nil
		}
	}
	return at
}

// Text returns the string at the path, "" where there is none.
func (o Object) Text(path ...string) string {
	s, _ := o.At(path...).(string)
	return s
}

// Texts returns the list of strings at the path.
func (o Object) Texts(path ...string) []string {
	list, _ := o.At(path...).([]any)
	out := make([]string, 0, len(list))
	for _, e := range list {
		if s, ok := e.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

// Objects returns the list of maps at the path.
func (o Object) Objects(path ...string) []Object {
	list, _ := o.At(path...).([]any)
	out := make([]Object, 0, len(list))
	for _, e := range list {
		switch m := e.(type) {
		case Object:
			out = append(out, m)
		case map[string]any:
			out = append(out, m)
		}
	}
	return out
}

// Kind and Name are what the object is called.
func (o Object) Kind() string { return o.Text("kind") }
func (o Object) Name() string { return o.Text("metadata", "name") }

// String is the object's kind and name, for messages.
func (o Object) String() string { return o.Kind() + "/" + o.Name() }

// Pod returns the pod template's spec of a workload, nil of anything else.
func (o Object) Pod() Object {
	switch m := o.At("spec", "template", "spec").(type) {
	case Object:
		return m
	case map[string]any:
		return m
	}
	return nil
}
