package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// lookEvery is how often files are looked at while they are waited for.
const lookEvery = 500 * time.Millisecond

// Files is a certificate in a directory, read again when it changes: a handshake uses what is there at its time. Safe for concurrent use.
type Files struct {
	dir string

	mu    sync.Mutex
	state [3]fs.FileInfo
	pair  *tls.Certificate
	roots *x509.CertPool
}

// Open returns the files of dir, which need not be there yet.
func Open(dir string) *Files { return &Files{dir: dir} }

// Wait returns when there is a certificate that can be used, or with the reason why there is none when ctx ends. told, which may be nil, is called
// with the reason once where there is something to wait for.
func (f *Files) Wait(ctx context.Context, told func(error)) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		_, _, err := f.load()
		if err == nil {
			return nil
		}
		if told != nil {
			told(err)
			told = nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-tick.C:
		}
	}
}

// Server returns a configuration that takes peers of the role only. protocols are what is offered by ALPN, best first.
func (f *Files) Server(peer Role, protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			pair, roots, err := f.load()
			if err != nil {
				return nil, err
			}
			return &tls.Config{
				MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*pair}, ClientCAs: roots, NextProtos: protocols,
				ClientAuth: tls.RequireAndVerifyClientCert, VerifyConnection: is(peer),
			}, nil
		},
	}
}

// Client returns a configuration for connections to peers of the role.
func (f *Files) Client(peer Role, protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: protocols, ServerName: string(peer),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, _, err := f.load()
			return pair, err
		},
		// The roots may change while a configuration lives, so the chain is verified below.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			_, roots, err := f.load()
			if err != nil {
				return err
			}
			return verify(s, peer, roots)
		},
	}
}

func is(peer Role) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error { return s.PeerCertificates[0].VerifyHostname(string(peer)) }
}

func verify(s tls.ConnectionState, peer Role, roots *x509.CertPool) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the peer showed no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: string(peer), Roots: roots, Intermediates: between})
	return err
}

// load reads the files where they have changed.
func (f *Files) load() (*tls.Certificate, *x509.CertPool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var state [3]fs.FileInfo
	for i, name := range []string{FileCA, FileCert, FileKey} {
		var err error
		if state[i], err = os.Stat(filepath.Join(f.dir, name)); err != nil {
			return nil, nil, fmt.Errorf("certificate: %w", err)
		}
	}
	if f.pair != nil && same(state, f.state) {
		return f.pair, f.roots, nil
	}
	pair, roots, err := read(f.dir)
	if err != nil && f.pair != nil {
		return f.pair, f.roots, nil // half written: those before hold until the rest is there
	}
	if err != nil {
		return nil, nil, fmt.Errorf("certificate in %s: %w", f.dir, err)
	}
	f.state, f.pair, f.roots = state, pair, roots
	return pair, roots, nil
}

// Write puts the certificate into dir, which is made where it is missing, for Open. Each file is whole or not there.
func (c Certificate) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, b := range map[string][]byte{FileCA: c.CA, FileCert: c.Cert, FileKey: c.Key} {
		fresh := filepath.Join(dir, "."+name)
		if err := errors.Join(os.WriteFile(fresh, b, 0o600), os.Rename(fresh, filepath.Join(dir, name))); err != nil {
			return err
		}
	}
	return nil
}

func same(a, b [3]fs.FileInfo) bool {
	for i := range a {
		if b[i] == nil || !os.SameFile(a[i], b[i]) || !a[i].ModTime().Equal(b[i].ModTime()) || a[i].Size() != b[i].Size() {
			return false
		}
	}
	return true
}

func read(dir string) (*tls.Certificate, *x509.CertPool, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, FileCert), filepath.Join(dir, FileKey))
	if err != nil {
		return nil, nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, FileCA))
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, nil, fmt.Errorf("%w: %s holds none", ErrUnusable, FileCA)
	}
	return &pair, roots, nil
}
