package distributed

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// obj is an object of the API, as JSON.
type obj = map[string]any

// api is the API server for one user: the administrator, or whom the administrator speaks for.
type api struct {
	client *http.Client
	host   string
	user   string
}

func config() *rest.Config {
	return must(clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG")))
}

func newAPI() api {
	c := config()
	return api{client: must(rest.HTTPClientFor(c)), host: c.Host}
}

// as is the API for another user.
func (a api) as(user string) api {
	a.user = user
	return a
}

// apiError is what the API server refused, and how.
type apiError struct {
	code int
	text string
}

func (e apiError) Error() string { return fmt.Sprintf("%d: %s", e.code, e.text) }

// try makes a request; in and out may be nil.
func (a api) try(method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var body io.Reader
	if in != nil {
		body = bytes.NewReader(must(json.Marshal(in)))
	}
	q := must(http.NewRequestWithContext(ctx, method, a.host+path, body))
	q.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		q.Header.Set("Content-Type", "application/merge-patch+json")
	}
	if a.user != "" {
		q.Header.Set("Impersonate-User", a.user)
	}
	r, err := a.client.Do(q)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode >= http.StatusMultipleChoices {
		return apiError{r.StatusCode, fmt.Sprint(err, string(text))}
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}

// do is try, and must succeed.
func (a api) do(t *testing.T, method, path string, in, out any) {
	t.Helper()
	if err := a.try(method, path, in, out); err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
}

// gone deletes the object, where it is, without waiting for its finalizers, which are taken away.
func (a api) gone(path string) {
	_ = a.try(http.MethodDelete, path, obj{"gracePeriodSeconds": 0}, nil)
	_ = a.try(http.MethodPatch, path, obj{"metadata": obj{"finalizers": nil}}, nil)
}

// belayConfig is how Belay's own account, with its rights and no others, reaches the API server.
func (a api) belayConfig(t *testing.T) *rest.Config {
	t.Helper()
	var token struct{ Status struct{ Token string } }
	name := account[strings.LastIndex(account, ":")+1:]
	a.do(t, http.MethodPost, "/api/v1/namespaces/"+space+"/serviceaccounts/"+name+"/token", obj{"spec": obj{"expirationSeconds": 7200}}, &token)
	c := config()
	return &rest.Config{Host: c.Host, BearerToken: token.Status.Token, TLSClientConfig: rest.TLSClientConfig{CAFile: c.CAFile, CAData: c.CAData}}
}

// kubeconfig is that as a file.
func kubeconfig(t *testing.T, c *rest.Config) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := must(json.Marshal(obj{
		"apiVersion": "v1", "kind": "Config", "current-context": "lab",
		"clusters": []obj{{"name": "lab", "cluster": obj{"server": c.Host, "certificate-authority": c.CAFile}}},
		"users":    []obj{{"name": "belay", "user": obj{"token": c.BearerToken}}},
		"contexts": []obj{{"name": "lab", "context": obj{"cluster": "lab", "user": "belay"}}},
	}))
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
