// Command registrar tells the kubelet of a CSI driver, with the flags of the node-driver-registrar of kubernetes-csi: that one is no
// module that a proxy serves, and the lab builds all it runs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginregistration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// askEvery is the time between two questions to a driver that does not answer.
const askEvery = time.Second

type config struct {
	driverSocket  string        // of the driver, as seen here
	kubeletSocket string        // of the driver, as seen by the kubelet
	registry      string        // the kubelet's directory of registrations, as seen here
	httpEndpoint  string        // where /healthz is, empty for nowhere
	timeout       time.Duration // of a call to the driver
}

func main() {
	c := config{}
	flag.StringVar(&c.driverSocket, "csi-address", "/csi/csi.sock", "socket of the driver, as seen here")
	flag.StringVar(&c.kubeletSocket, "kubelet-registration-path", "", "socket of the driver, as seen by the kubelet (required)")
	flag.StringVar(&c.registry, "plugin-registration-path", "/registration", "the kubelet's directory of registrations, as seen here")
	flag.StringVar(&c.httpEndpoint, "http-endpoint", "", "address of /healthz, as :9809 (default: none)")
	flag.DurationVar(&c.timeout, "timeout", time.Second, "how long a call to the driver may take")
	_ = flag.Int("v", 0, "accepted as upstream does; every change is logged anyway")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, c); err != nil {
		slog.Error("registrar ends", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, c config) error {
	if c.kubeletSocket == "" {
		return errors.New("--kubelet-registration-path is missing")
	}
	name, err := driverName(ctx, c)
	if err != nil {
		return err
	}
	socket := filepath.Join(c.registry, name+"-reg.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("serve the registration: %w", err)
	}
	refused := make(chan error, 1)
	server := grpc.NewServer()
	pluginregistration.RegisterRegistrationServer(server, &registration{name: name, socket: c.kubeletSocket, refused: refused})
	go func() { refused <- server.Serve(listener) }()
	if c.httpEndpoint != "" {
		go func() { refused <- serveHealth(c.httpEndpoint, socket) }()
	}
	defer server.Stop() // which removes the socket, and with it the registration
	select {
	case <-ctx.Done():
		return nil
	case err := <-refused:
		return err
	}
}

// driverName asks the driver until it answers.
func driverName(ctx context.Context, c config) (string, error) {
	conn, err := grpc.NewClient("unix:"+c.driverSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, c.timeout)
		info, err := csi.NewIdentityClient(conn).GetPluginInfo(call, &csi.GetPluginInfoRequest{})
		cancel()
		if err == nil {
			return info.GetName(), nil
		}
		slog.Warn("the driver does not answer yet", "socket", c.driverSocket, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(askEvery):
		}
	}
	return "", ctx.Err()
}

// registration answers the kubelet, which found the socket in its directory.
type registration struct {
	pluginregistration.UnsafeRegistrationServer
	name, socket string
	refused      chan<- error
}

func (r *registration) GetInfo(context.Context, *pluginregistration.InfoRequest) (*pluginregistration.PluginInfo, error) {
	return &pluginregistration.PluginInfo{
		Type: pluginregistration.CSIPlugin, Name: r.name, Endpoint: r.socket, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus ends the process where the kubelet refused: a restart is the next try.
func (r *registration) NotifyRegistrationStatus(_ context.Context, s *pluginregistration.RegistrationStatus) (*pluginregistration.RegistrationStatusResponse, error) {
	slog.Info("the kubelet answered", "driver", r.name, "registered", s.GetPluginRegistered(), "error", s.GetError())
	if !s.GetPluginRegistered() {
		r.refused <- fmt.Errorf("the kubelet refused %s: %s", r.name, s.GetError())
	}
	return &pluginregistration.RegistrationStatusResponse{}, nil
}

// serveHealth says whether the registration socket is there: a kubelet that starts anew with an empty directory has lost it.
func serveHealth(endpoint, socket string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat(socket); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, "ok")
	})
	return http.ListenAndServe(endpoint, mux)
}
