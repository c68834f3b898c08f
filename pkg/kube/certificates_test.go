package kube

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/belay-storage/belay/pkg/kube/kubetest"
	"github.com/belay-storage/belay/pkg/mtls"
)

func secret(name string, data map[string][]byte) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: space, Labels: map[string]string{"app": "belay"}}, Type: corev1.SecretTypeTLS, Data: data}
}

// shipped are the Secrets as the manifests have them.
func shipped() []kubetest.Object {
	empty := map[string][]byte{mtls.FileCert: {}, mtls.FileKey: {}}
	return []kubetest.Object{secret(SecretAuthority, empty), secret(SecretController, empty), secret(SecretNode, nil)}
}

func (w *world) certificates() (stop func()) { return w.run(NewCertificates(w.cluster).Run) }

func (w *world) read(name string) map[string][]byte {
	s := secret(name, nil)
	w.server.Get(s)
	return s.Data
}

// wantsGood sees that both certificates are the authority's, good now and not to be renewed yet.
func (w *world) wantsGood() (authority string) {
	w.Helper()
	ca := w.read(SecretAuthority)
	a, err := mtls.ParseAuthority(ca[mtls.FileCert], ca[mtls.FileKey])
	if err != nil {
		w.Fatal(err)
	}
	for name, role := range map[string]mtls.Role{SecretController: mtls.Controller, SecretNode: mtls.Node} {
		d := w.read(name)
		renew, err := a.Check(mtls.Certificate{CA: d[mtls.FileCA], Cert: d[mtls.FileCert], Key: d[mtls.FileKey]}, role, time.Now())
		if err != nil || !renew.After(time.Now()) {
			w.Errorf("%s: renew at %v, %v", name, renew, err)
		}
	}
	return string(ca[mtls.FileKey])
}

// writesTo lists which Secrets were written.
func (w *world) writesTo() (out []string) {
	for _, r := range w.server.Writes() {
		out = append(out, r.Path[len("/api/v1/namespaces/"+space+"/secrets/"):])
	}
	return out
}

// TestCertificatesAreMadeOnce, and left alone while they are good, whoever leads.
func TestCertificatesAreMadeOnce(t *testing.T) {
	inCluster(t, shipped(), func(w *world) {
		stop := w.certificates()
		settle()
		w.wantsGood()
		time.Sleep(24 * time.Hour)
		stop()
		w.certificates()
		time.Sleep(24 * time.Hour)
		if got := w.writesTo(); !slices.Equal(got, []string{SecretAuthority, SecretController, SecretNode}) {
			t.Errorf("written: %v", got)
		}
		if s := secret(SecretNode, nil); !w.server.Get(s) || s.Type != corev1.SecretTypeTLS || s.Labels["app"] != "belay" || len(s.Data) != 3 {
			t.Errorf("the Secret is %v", s)
		}
		if _, there := w.read(SecretNode)["ca.key"]; there || slices.Equal(w.read(SecretNode)[mtls.FileKey], w.read(SecretAuthority)[mtls.FileKey]) {
			t.Error("the nodes have the authority's key")
		}
	})
}

// TestCertificatesAreRenewed long before they run out, by the authority that they had.
func TestCertificatesAreRenewed(t *testing.T) {
	inCluster(t, shipped(), func(w *world) {
		stop := w.certificates()
		settle()
		stop()
		first, before := w.wantsGood(), w.read(SecretNode)
		time.Sleep(250 * 24 * time.Hour)
		w.certificates()
		settle()
		if w.wantsGood() != first || slices.Equal(before[mtls.FileCert], w.read(SecretNode)[mtls.FileCert]) {
			t.Error("the authority is another one, or the certificate is not")
		}
	})
}

// TestTheAuthorityIsRenewed: the new one signs, and the former one stays trusted.
func TestTheAuthorityIsRenewed(t *testing.T) {
	inCluster(t, shipped(), func(w *world) {
		stop := w.certificates()
		settle()
		stop()
		first, before := w.wantsGood(), w.read(SecretAuthority)
		time.Sleep(7 * 365 * 24 * time.Hour)
		w.certificates()
		settle()
		if w.wantsGood() == first {
			t.Error("the authority is the same")
		}
		if trusted := w.read(SecretNode)[mtls.FileCA]; len(trusted) <= len(before[mtls.FileCert]) {
			t.Error("the former authority is not trusted any more")
		}
	})
}

// TestWhatIsNoAuthorityOfOursIsLeftAlone: somebody's own certificate, or half of one.
func TestWhatIsNoAuthorityOfOursIsLeftAlone(t *testing.T) {
	inCluster(t, shipped(), func(w *world) {
		w.certificates()
		settle()
		good := w.read(SecretAuthority)
		for name, data := range map[string]map[string][]byte{
			"garbage": {mtls.FileCert: []byte("x"), mtls.FileKey: []byte("y")}, "no key": {mtls.FileCert: good[mtls.FileCert]}, "no certificate": {mtls.FileKey: good[mtls.FileKey]},
		} {
			w.server.Put(secret(SecretAuthority, data))
			writes := len(w.server.Writes())
			time.Sleep(3 * time.Hour)
			if got := w.server.Writes()[writes:]; len(got) > 0 {
				t.Errorf("%s: written %v", name, got)
			}
		}
	})
}

// TestADamagedCertificateIsMadeAnew by the same authority; it is nobody's but ours.
func TestADamagedCertificateIsMadeAnew(t *testing.T) {
	inCluster(t, shipped(), func(w *world) {
		w.certificates()
		settle()
		first := w.wantsGood()
		w.server.Put(secret(SecretNode, map[string][]byte{mtls.FileCert: []byte("x")}))
		time.Sleep(2 * certificatesLook)
		if w.wantsGood() != first {
			t.Error("the authority is another one")
		}
	})
}

// TestTwoThatMakeAnAuthority: one of them is in the Secret, and only that one signs.
func TestTwoThatMakeAnAuthority(t *testing.T) {
	inCluster(t, shipped(), func(w *world) {
		w.certificates()
		w.certificates()
		time.Sleep(time.Minute)
		w.wantsGood()
		if n := slices.DeleteFunc(w.server.Requests(func(r kubetest.Request) bool { return r.Method == "PUT" && r.Code == 200 }), func(r kubetest.Request) bool {
			return r.Path != "/api/v1/namespaces/"+space+"/secrets/"+SecretAuthority
		}); len(n) != 1 {
			t.Errorf("the authority was written %d times", len(n))
		}
	})
}

// TestMissingSecretsAreFilledWhenTheyCome.
func TestMissingSecretsAreFilledWhenTheyCome(t *testing.T) {
	inCluster(t, nil, func(w *world) {
		w.certificates()
		time.Sleep(time.Minute)
		for _, s := range shipped() {
			w.server.Put(s)
		}
		time.Sleep(time.Minute)
		w.wantsGood()
	})
}

// TestTheControllerFetchesItsCertificate as soon as it is there, and again when it is renewed.
func TestTheControllerFetchesItsCertificate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	inCluster(t, shipped(), func(w *world) {
		fetch := func(ctx context.Context) { FetchCertificate(ctx, w.api, space, dir, slog.New(slog.DiscardHandler)) }
		unfetch := w.run(fetch)
		settle()
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("written while the Secret is empty: %v", err)
		}
		stop := w.certificates()
		settle()
		stop()
		same := func() bool {
			got, err := os.ReadFile(filepath.Join(dir, mtls.FileCert))
			return err == nil && slices.Equal(got, w.read(SecretController)[mtls.FileCert])
		}
		if !same() {
			t.Error("it is not there")
		}
		unfetch() // 250 days of looking take their time
		time.Sleep(250 * 24 * time.Hour)
		w.run(fetch)
		settle()
		w.certificates()
		time.Sleep(2 * fetchAgain)
		w.wantsGood()
		if !same() {
			t.Error("it was not renewed")
		}
	})
}
