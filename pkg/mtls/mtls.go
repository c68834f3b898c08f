// Package mtls is how the controller and the machines of a cluster know each other: TLS 1.3 in both directions, with certificates of an
// authority of the installation's own, made without another product.
//
// A certificate names a role and not a machine: whoever holds a node's key can speak for every node. A node is root on its machine in any
// case; what it must not be is the controller, and that it cannot be.
package mtls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Role is what a certificate is for, as the DNS name in it.
type Role string

// Roles.
const (
	Controller Role = "controller.csi.belay.storage"
	Node       Role = "node.csi.belay.storage"
)

// Files of a certificate, as in a Secret of type kubernetes.io/tls.
const (
	FileCA   = "ca.crt"
	FileCert = "tls.crt"
	FileKey  = "tls.key"
)

// ErrUnusable is wrapped by every error that says a certificate or an authority cannot be used, and must be made anew.
var ErrUnusable = errors.New("unusable certificate")

// Lives of certificates. They are renewed when two thirds have gone.
const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 365 * 24 * time.Hour
	early         = 5 * time.Minute // clocks of machines differ
)

// Certificate is a certificate with its key, and who is trusted, all PEM.
type Certificate struct{ CA, Cert, Key []byte }

// Authority signs certificates. Safe for concurrent use.
type Authority struct {
	cert    *x509.Certificate
	key     crypto.Signer
	Trusted []byte // PEM: its own certificate, and those of its predecessors that still hold
	KeyPEM  []byte
}

// NewAuthority makes an authority. former, nil for none, stays trusted until it expires, so that what it signed is taken meanwhile.
func NewAuthority(now time.Time, former *Authority) (*Authority, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	template, err := newTemplate("Belay", now, authorityLife)
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign
	own, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if former != nil && now.Before(former.cert.NotAfter) {
		own = append(own, former.Trusted...)
	}
	return ParseAuthority(own, keyPEM)
}

// ParseAuthority reads an authority that NewAuthority made. ErrUnusable where it is none.
func ParseAuthority(trusted, keyPEM []byte) (*Authority, error) {
	cert, err := firstCertificate(trusted)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	if public, ok := key.Public().(*ecdsa.PublicKey); !ok || !public.Equal(cert.PublicKey) || !cert.IsCA {
		return nil, fmt.Errorf("%w: the authority's key is not that of its certificate", ErrUnusable)
	}
	return &Authority{cert: cert, key: key, Trusted: trusted, KeyPEM: keyPEM}, nil
}

// Renew is when another authority should take over.
func (a *Authority) Renew() time.Time { return renewal(a.cert) }

// Issue makes a certificate for the role.
func (a *Authority) Issue(role Role, now time.Time) (Certificate, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return Certificate{}, err
	}
	template, err := newTemplate(string(role), now, leafLife)
	if err != nil {
		return Certificate{}, err
	}
	template.DNSNames = []string{string(role)}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	cert, err := sign(template, a.cert, key.Public(), a.key)
	return Certificate{CA: a.Trusted, Cert: cert, Key: keyPEM}, err
}

// Check returns when c should be renewed; ErrUnusable where it is not a certificate of the role that a signed and that holds now.
func (a *Authority) Check(c Certificate, role Role, now time.Time) (time.Time, error) {
	cert, err := firstCertificate(c.Cert)
	if err != nil {
		return time.Time{}, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	_, err = cert.Verify(x509.VerifyOptions{DNSName: string(role), Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return time.Time{}, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	if _, err := tls.X509KeyPair(c.Cert, c.Key); err != nil {
		return time.Time{}, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	if string(c.CA) != string(a.Trusted) {
		return time.Time{}, fmt.Errorf("%w: it comes with another list of who is trusted", ErrUnusable)
	}
	return renewal(cert), nil
}

func renewal(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3)
}

func newTemplate(name string, now time.Time, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-early), NotAfter: now.Add(life),
	}, err
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

func parseKey(b []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%w: no key in it", ErrUnusable)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: a %T signs nothing", ErrUnusable, key)
	}
	return signer, nil
}

func firstCertificate(b []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%w: no certificate in it", ErrUnusable)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	return cert, nil
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, by crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, by)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}
