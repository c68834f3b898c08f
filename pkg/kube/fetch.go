package kube

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/belay-storage/belay/pkg/mtls"
)

// How often the controller's own Secret is read: often until it is filled, which the leader does within seconds of an installation.
const (
	fetchEmpty = time.Second
	fetchAgain = 5 * time.Minute
)

// FetchCertificate keeps the controller's own certificate in dir until ctx ends: as it is in its Secret, sooner than kubelet would bring it into the pod.
func FetchCertificate(ctx context.Context, api *API, namespace, dir string, log *slog.Logger) {
	last := ""
	for ctx.Err() == nil {
		next := fetchAgain
		if err := fetch(ctx, api, namespace, dir); err != nil {
			next = fetchEmpty
			if err.Error() != last && ctx.Err() == nil {
				last = err.Error()
				log.Info("waiting for the controller's certificate", "error", err)
			}
		}
		pause(ctx, next)
	}
}

func fetch(ctx context.Context, api *API, namespace, dir string) error {
	s, err := api.secrets(namespace).get(ctx, SecretController)
	if err != nil {
		return err
	}
	c := mtls.Certificate{CA: s.Data[mtls.FileCA], Cert: s.Data[mtls.FileCert], Key: s.Data[mtls.FileKey]}
	if len(c.CA) == 0 || len(c.Cert) == 0 || len(c.Key) == 0 {
		return fmt.Errorf("Secret %s/%s is still empty; the leader fills it", namespace, SecretController)
	}
	return c.Write(dir)
}
