package telemetry

import (
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/belay-storage/belay/pkg/volume"
)

// Metrics counts what happens. Its methods are callbacks: they may be called concurrently and never block. Series that carry a
// volume's name exist while it is attached and end with its receipt, so that their number is bounded by what is attached.
type Metrics struct {
	*served

	refused     *prometheus.CounterVec
	receipts    *prometheus.CounterVec
	seconds     prometheus.Histogram
	bytes       prometheus.Histogram
	running     prometheus.Gauge
	fences      prometheus.Counter
	quarantined prometheus.Counter
	repaired    prometheus.Counter
	engineUp    *prometheus.GaugeVec
	inSync      *prometheus.GaugeVec
	wanted      *prometheus.GaugeVec
	scrubbed    *prometheus.CounterVec
	unclean     prometheus.Counter
	checks      *prometheus.HistogramVec

	mu       sync.Mutex
	barriers map[volume.ID]*barrier
	released map[volume.ID]bool // a receipt is in force and the engine has not started again
}

// barrier is a detach on its way: since its first try, with the most that was read back.
type barrier struct {
	since    time.Time
	verified volume.Bytes
}

// Buckets. Those of calls are the ones of the Kubernetes sidecars, so that both ends of a call compare.
var (
	callBuckets    = []float64{.1, .25, .5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600}
	barrierBuckets = []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800}
	byteBuckets    = prometheus.ExponentialBuckets(1<<20, 4, 10) // 1 MiB to 256 GiB
)

// New returns metrics of a driver with the CSI name, and of this build.
func New(driver, version string) *Metrics {
	m := &Metrics{served: newServed(driver, version), barriers: map[volume.ID]*barrier{}, released: map[volume.ID]bool{}}
	m.makeDetach()
	m.makeEngine()
	m.makeChecks()
	return m
}

// served is what every role has: its registry, and the calls that it answers.
type served struct {
	registry *prometheus.Registry
	driver   string
	calls    *prometheus.HistogramVec
}

func newServed(driver, version string) *served {
	m := &served{registry: prometheus.NewRegistry(), driver: driver}
	m.makeCalls()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "belay_build_info", Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *served) makeCalls() {
	m.calls = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "csi_plugin_operations_seconds", Help: "Duration of CSI calls by method and gRPC status code.", Buckets: callBuckets,
	}, []string{"driver_name", "method_name", "grpc_status_code"})
	m.registry.MustRegister(m.calls)
}

func (m *Metrics) makeDetach() {
	m.refused = counters("belay_detach_refused_total", "Detaches that the gate did not let finish, by reason.", "reason")
	m.receipts = counters("belay_receipts_total", "Receipts put in force, by kind.", "kind")
	m.seconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "belay_barrier_seconds", Help: "Time from the start of a barrier to its receipt.", Buckets: barrierBuckets,
	})
	m.bytes = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "belay_barrier_bytes", Help: "Bytes read back from the replicas for a barrier.", Buckets: byteBuckets,
	})
	m.running = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "belay_barriers_running", Help: "Barriers that began and have no receipt yet.",
	})
	m.fences = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "belay_fences_total", Help: "Writers that were shut out because their node was lost.",
	})
	m.quarantined = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "belay_quarantined_total", Help: "Volumes quarantined because their copies disagree and nobody can tell which is right.",
	})
	m.registry.MustRegister(m.refused, m.receipts, m.seconds, m.bytes, m.running, m.fences, m.quarantined)
}

func (m *Metrics) makeEngine() {
	m.repaired = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "belay_repaired_blocks_total", Help: "Blocks of a replica that were wrong and were mended from a good copy.",
	})
	m.engineUp = gauges("belay_engine_up", "1 while the engine of an attached volume runs, 0 where it died.")
	m.inSync = gauges("belay_replicas_in_sync", "Replicas of an attached volume that hold everything acknowledged.")
	m.wanted = gauges("belay_replicas", "Replicas that an attached volume should have.")
	m.scrubbed = counters("belay_scrubbed_bytes_total", "Bytes that the background verifier has read.", "volume")
	m.registry.MustRegister(m.repaired, m.engineUp, m.inSync, m.wanted, m.scrubbed)
}

func (m *Metrics) makeChecks() {
	m.unclean = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "belay_unclean_attaches_total", Help: "Volumes staged whose last writer had died or was shut out before it had flushed.",
	})
	m.checks = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "belay_filesystem_check_seconds", Help: "Duration of checks of filesystems in doubt, by verdict: clean, damaged, failed.", Buckets: callBuckets,
	}, []string{"verdict"})
	m.registry.MustRegister(m.unclean, m.checks)
}

func counters(name, help, label string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
}

func gauges(name, help string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"volume"})
}
