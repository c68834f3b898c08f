package sanity

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/belay-storage/belay/pkg/kube"
	"github.com/belay-storage/belay/pkg/kube/kubetest"
	"github.com/belay-storage/belay/pkg/mtls"
)

const (
	nodeName  = "sanity-node"
	namespace = "belay-system"
)

// cluster is a machine of a cluster and its controller, with a small API server between them.
type cluster struct {
	*program   // belay node
	controller *exec.Cmd
	ended      chan struct{}
	endpoint   string // of the controller
	api        *httptest.Server
}

// startCluster runs both and waits until the controller reaches the node.
func startCluster(t *testing.T) *cluster {
	t.Helper()
	server := kubetest.New(t)
	c := &cluster{api: httptest.NewServer(server), ended: make(chan struct{})}
	t.Cleanup(c.api.Close)
	port := vacantPort(t)
	for _, o := range objects(port) {
		server.Put(o)
	}
	c.program = startAs(t, "node", func(p *program) []string {
		return []string{"--cluster-endpoint", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), "--tls-dir", p.path("tls"), "--install-dir", p.path("bin")}
	})
	c.startController()
	c.bringCertificate()
	c.waitReadyAt(c.endpoint)
	return c
}

func vacantPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// objects are those that manifests and kubelet make.
func objects(port int) []kubetest.Object {
	name, at, ready, on := kube.DefaultPort, int32(port), true, nodeName
	list := []kubetest.Object{
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}},
		&storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: nodeName}, Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: "csi.belay.storage", NodeID: nodeName}}}},
		&discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: "belay-node-1", Namespace: namespace, Labels: map[string]string{discoveryv1.LabelServiceName: kube.DefaultService}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &at}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"127.0.0.1"}, NodeName: &on, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		},
	}
	for _, secret := range []string{kube.SecretAuthority, kube.SecretController, kube.SecretNode} {
		list = append(list, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: secret, Namespace: namespace}})
	}
	return list
}

func (c *cluster) startController() {
	c.t.Helper()
	config := c.path("kubeconfig")
	must(c.t, os.WriteFile(config, fmt.Appendf(nil, `{apiVersion: v1, kind: Config, current-context: x, contexts: [{name: x, context: {cluster: c}}], clusters: [{name: c, cluster: {server: "%s"}}]}`, c.api.URL), 0o600))
	c.endpoint = "unix://" + c.path("controller/csi.sock")
	c.controller = exec.Command(c.binary, "controller", "--endpoint", c.endpoint, "--admin-socket", c.path("controller/admin/admin.sock"), "--namespace", namespace,
		"--kubeconfig", config, "--kube-api-qps", "1000", "--kube-api-burst", "1000")
	c.controller.Stdout, c.controller.Stderr = c.log, c.log
	must(c.t, c.controller.Start())
	go func() { _ = c.controller.Wait(); close(c.ended) }()
	c.t.Cleanup(c.stopController)
}

func (c *cluster) stopController() {
	_ = c.controller.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.ended:
	case <-time.After(30 * time.Second):
		c.t.Error("the controller did not end within 30 s of SIGTERM")
		_ = c.controller.Process.Kill()
		<-c.ended
	}
}

// bringCertificate does what kubelet does: it brings the node's Secret, which the controller fills, into its directory.
func (c *cluster) bringCertificate() {
	c.t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var s corev1.Secret
		r, err := http.Get(c.api.URL + "/api/v1/namespaces/" + namespace + "/secrets/" + kube.SecretNode)
		must(c.t, err)
		err = json.NewDecoder(r.Body).Decode(&s)
		r.Body.Close()
		must(c.t, err)
		if len(s.Data[mtls.FileKey]) > 0 {
			must(c.t, mtls.Certificate{CA: s.Data[mtls.FileCA], Cert: s.Data[mtls.FileCert], Key: s.Data[mtls.FileKey]}.Write(c.path("tls")))
			return
		}
	}
	c.t.Fatalf("no certificate was made\n%s", c.tail())
}
