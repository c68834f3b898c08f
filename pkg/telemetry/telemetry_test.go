package telemetry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"
)

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler(func(context.Context) error { return nil }).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("scrape: %d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func wantSeries(t *testing.T, text string, present []string, absent ...string) {
	t.Helper()
	for _, s := range present {
		if !strings.Contains(text, s+"\n") {
			t.Errorf("missing %q", s)
		}
	}
	for _, s := range absent {
		if strings.Contains(text, s) {
			t.Errorf("should be gone: %q", s)
		}
	}
}

func TestMetricsSayWhatHappened(t *testing.T) {
	m := New("csi.test", "v1")
	m.Call("/csi.v1.Node/NodeStageVolume", "OK", 200*time.Millisecond)
	m.DetachRefused("held")
	m.DetachRefused("held")
	m.Fenced()
	m.Quarantined()
	m.Repaired()
	m.Unclean()
	m.Checked("damaged", 30*time.Second)
	m.Engine("a", true)
	m.Replicas("a", 2, 3)
	m.Scrubbed("a", 4096)
	m.BarrierStarted("a")
	m.BarrierStarted("a")
	text := scrape(t, m)
	wantSeries(t, text, []string{
		`csi_plugin_operations_seconds_bucket{driver_name="csi.test",grpc_status_code="OK",method_name="/csi.v1.Node/NodeStageVolume",le="0.25"} 1`,
		`belay_detach_refused_total{reason="held"} 2`,
		`belay_fences_total 1`, `belay_quarantined_total 1`, `belay_repaired_blocks_total 1`,
		`belay_unclean_attaches_total 1`, `belay_filesystem_check_seconds_count{verdict="damaged"} 1`, `belay_filesystem_check_seconds_sum{verdict="damaged"} 30`,
		`belay_engine_up{volume="a"} 1`, `belay_replicas_in_sync{volume="a"} 2`, `belay_replicas{volume="a"} 3`,
		`belay_scrubbed_bytes_total{volume="a"} 4096`, `belay_barriers_running 1`, `belay_barrier_seconds_count 0`,
	})
	if !regexp.MustCompile(`belay_build_info\{goversion="go[^"]+",version="v1"\} 1`).MatchString(text) {
		t.Error("no build info")
	}
}

func TestVolumeSeriesEndWithTheReceipt(t *testing.T) {
	m := New("csi.test", "v1")
	m.Engine("a", true)
	m.Replicas("a", 3, 3)
	m.BarrierStarted("a")
	m.BarrierVerified("a", 2<<20)
	m.BarrierVerified("a", 1<<20)
	m.Receipt("a", "clean")
	m.Replicas("a", 3, 3) // a late word of the engine brings nothing back
	m.Scrubbed("a", 1)
	m.Engine("a", false)
	wantSeries(t, scrape(t, m), []string{
		`belay_receipts_total{kind="clean"} 1`, `belay_barrier_seconds_count 1`, `belay_barrier_bytes_sum 2.097152e+06`,
		`belay_barriers_running 0`,
	}, `volume="a"`)
	m.Engine("a", true)
	m.Engine("a", false) // died: no receipt came first
	wantSeries(t, scrape(t, m), []string{`belay_engine_up{volume="a"} 0`})
}

func TestHealthSaysWhyNot(t *testing.T) {
	m, broken := New("d", "v"), errors.New("store /a does not answer")
	for _, tc := range []struct {
		err  error
		code int
		body string
	}{{nil, http.StatusOK, "ok\n"}, {broken, http.StatusServiceUnavailable, "store /a does not answer\n"}} {
		w := httptest.NewRecorder()
		m.Handler(func(context.Context) error { return tc.err }).ServeHTTP(w, httptest.NewRequest("GET", "/healthz", nil))
		if w.Code != tc.code || w.Body.String() != tc.body {
			t.Errorf("%v: %d %q", tc.err, w.Code, w.Body)
		}
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, l, New("d", "v").Handler(func(context.Context) error { return nil }))
	}()
	resp, err := http.Get("http://" + l.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(resp.Body); string(body) != "ok\n" {
		t.Errorf("body %q", body)
	}
	resp.Body.Close()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestLogger(t *testing.T) {
	for _, tc := range []struct {
		format    string
		verbosity int
		want      string
		debug     bool
	}{{Text, 0, "volume=a", false}, {JSON, 0, `"volume":"a"`, false}, {JSON, 4, `"volume":"a"`, true}} {
		var out bytes.Buffer
		log, err := NewLogger(&out, tc.format, tc.verbosity)
		if err != nil {
			t.Fatal(err)
		}
		log.Info("attached", "volume", "a")
		log.Debug("detail")
		if !strings.Contains(out.String(), tc.want) || strings.Contains(out.String(), "detail") != tc.debug || log.Enabled(t.Context(), slog.LevelDebug) != tc.debug {
			t.Errorf("%+v: %s", tc, out.String())
		}
	}
	if _, err := NewLogger(io.Discard, "xml", 0); err == nil {
		t.Error("xml accepted")
	}
}

func TestClusterCounts(t *testing.T) {
	m := NewCluster("d", "v1")
	m.Told("DetachRefused")
	m.Override("done")
	m.Request("PATCH", "nodes", 200, 3*time.Millisecond)
	m.Leading(true)
	m.Call("/csi.v1.Controller/CreateVolume", "OK", time.Second)
	w := httptest.NewRecorder()
	m.Handler(func(context.Context) error { return nil }).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		`belay_cluster_events_total{reason="DetachRefused"} 1`, `belay_overrides_total{outcome="done"} 1`, `belay_controller_leading 1`,
		`belay_api_request_seconds_count{resource="nodes",status="200",verb="PATCH"} 1`, `belay_build_info{`, `grpc_status_code="OK"`,
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s", want)
		}
	}
	m.Leading(false)
}
