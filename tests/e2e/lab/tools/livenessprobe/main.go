// Command livenessprobe asks a CSI driver for its health when it is asked over HTTP, with the flags of the livenessprobe of
// kubernetes-csi: that one is no module that a proxy serves, and the lab builds all it runs.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func main() {
	driver := flag.String("csi-address", "/csi/csi.sock", "socket of the driver")
	port := flag.String("health-port", "9808", "port of /healthz on every address, where --http-endpoint is not given")
	endpoint := flag.String("http-endpoint", "", "address of /healthz, as :9808")
	timeout := flag.Duration("probe-timeout", time.Second, "how long the driver may take to answer")
	verbosity := flag.Int("v", 0, "from 5 on, good answers are logged too")
	flag.Parse()
	if err := serve(cmp.Or(*endpoint, ":"+*port), *driver, *timeout, *verbosity); err != nil {
		slog.Error("livenessprobe ends", "error", err)
		os.Exit(1)
	}
}

func serve(endpoint, driver string, timeout time.Duration, verbosity int) error {
	conn, err := grpc.NewClient("unix:"+driver, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		if err := probe(ctx, conn); err != nil {
			slog.Warn("the driver is not healthy", "error", err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if verbosity >= 5 {
			slog.Info("the driver is healthy")
		}
		fmt.Fprint(w, "ok")
	})
	return http.ListenAndServe(endpoint, mux)
}

func probe(ctx context.Context, conn *grpc.ClientConn) error {
	answer, err := csi.NewIdentityClient(conn).Probe(ctx, &csi.ProbeRequest{})
	if err != nil {
		return err
	}
	// No word is a yes, as the specification has it.
	if answer.GetReady() != nil && !answer.GetReady().GetValue() {
		return fmt.Errorf("the driver says that it is not ready")
	}
	return nil
}
