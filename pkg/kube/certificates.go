package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/belay-storage/belay/pkg/mtls"
)

// Secrets of the certificates. The manifests ship them empty.
const (
	SecretAuthority  = "belay-ca"
	SecretController = "belay-controller-tls"
	SecretNode       = "belay-node-tls"
)

// Times of the certificates: looked at so often, and so soon again after a failure, since without them nothing works.
const (
	certificatesLook  = time.Hour
	certificatesRetry = 5 * time.Second
)

// Certificates fills the Secrets and renews what is in them when two thirds of its life have gone. An authority that is still good is never replaced,
// and what is no authority of ours is not touched.
type Certificates struct {
	cluster *Cluster
}

// NewCertificates returns a controller.
func NewCertificates(k *Cluster) *Certificates { return &Certificates{k} }

// Run keeps the certificates until ctx ends.
func (c *Certificates) Run(ctx context.Context) {
	for ctx.Err() == nil {
		next := certificatesLook
		if err := c.look(ctx); err != nil && ctx.Err() == nil {
			c.cluster.Log.Error("certificates are not kept up", "error", err)
			next = certificatesRetry
		}
		pause(ctx, next)
	}
}

func (c *Certificates) look(ctx context.Context) error {
	authority, err := c.authority(ctx)
	if err != nil {
		return err
	}
	return errors.Join(c.keep(ctx, SecretController, authority, mtls.Controller), c.keep(ctx, SecretNode, authority, mtls.Node))
}

// authority returns the one in force, which is in its Secret.
func (c *Certificates) authority(ctx context.Context) (*mtls.Authority, error) {
	s, err := c.secret(ctx, SecretAuthority)
	if err != nil {
		return nil, err
	}
	former, err := stored(s)
	if err != nil || former != nil && time.Now().Before(former.Renew()) {
		return former, err
	}
	made, err := mtls.NewAuthority(time.Now(), former)
	if err != nil {
		return nil, err
	}
	// Only what is in the Secret may sign: two that are made at the same time must not both be used.
	return made, c.write(ctx, s, map[string][]byte{mtls.FileCert: made.Trusted, mtls.FileKey: made.KeyPEM})
}

// stored reads the authority in the Secret, nil where that is empty. What else is there is somebody's: an error.
func stored(s *corev1.Secret) (*mtls.Authority, error) {
	if len(s.Data[mtls.FileCert]) == 0 && len(s.Data[mtls.FileKey]) == 0 {
		return nil, nil
	}
	a, err := mtls.ParseAuthority(s.Data[mtls.FileCert], s.Data[mtls.FileKey])
	if err != nil {
		return nil, fmt.Errorf("Secret %s/%s: %w; it is left as it is: empty %s and %s to have one made", s.Namespace, s.Name, err, mtls.FileCert, mtls.FileKey)
	}
	return a, nil
}

// keep has the Secret hold a certificate of the role that the authority signed.
func (c *Certificates) keep(ctx context.Context, name string, a *mtls.Authority, role mtls.Role) error {
	s, err := c.secret(ctx, name)
	if err != nil {
		return err
	}
	now := time.Now()
	renew, err := a.Check(mtls.Certificate{CA: s.Data[mtls.FileCA], Cert: s.Data[mtls.FileCert], Key: s.Data[mtls.FileKey]}, role, now)
	if err == nil && now.Before(renew) {
		return nil
	}
	made, err := a.Issue(role, now)
	if err != nil {
		return err
	}
	return c.write(ctx, s, map[string][]byte{mtls.FileCA: made.CA, mtls.FileCert: made.Cert, mtls.FileKey: made.Key})
}

func (c *Certificates) secret(ctx context.Context, name string) (*corev1.Secret, error) {
	s, err := c.cluster.API.secrets(c.cluster.Namespace).get(ctx, name)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("Secret %s/%s is missing: the manifests ship it empty; apply them again", c.cluster.Namespace, name)
	}
	return s, err
}

// write changes the Secret as it was read, and nothing else in it.
func (c *Certificates) write(ctx context.Context, s *corev1.Secret, data map[string][]byte) error {
	s = s.DeepCopy()
	if s.Data == nil {
		s.Data = map[string][]byte{}
	}
	maps.Copy(s.Data, data)
	if _, err := c.cluster.API.secrets(s.Namespace).update(ctx, s.Name, s); err != nil {
		return err
	}
	c.cluster.Log.Info("certificate written", "secret", s.Name)
	return nil
}
