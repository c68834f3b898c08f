package telemetry

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Cluster counts what the controller of a cluster does. Its methods are callbacks: they may be called concurrently and never block.
type Cluster struct {
	*served
	events    *prometheus.CounterVec
	overrides *prometheus.CounterVec
	requests  *prometheus.HistogramVec
	leading   prometheus.Gauge
}

// NewCluster returns metrics of a controller for the driver with the CSI name, and of this build.
func NewCluster(driver, version string) *Cluster {
	m := &Cluster{
		served:    newServed(driver, version),
		events:    counters("belay_cluster_events_total", "What was told of volumes and nodes as Events, by reason.", "reason"),
		overrides: counters("belay_overrides_total", "Overrides that operators wrote to VolumeAttachments, by outcome: done, rejected.", "outcome"),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "belay_api_request_seconds", Help: "Duration of requests to the API server, by verb, resource and HTTP status; 0 where none came.", Buckets: prometheus.DefBuckets,
		}, []string{"verb", "resource", "status"}),
		leading: prometheus.NewGauge(prometheus.GaugeOpts{Name: "belay_controller_leading", Help: "1 while this process writes to the cluster."}),
	}
	m.registry.MustRegister(m.events, m.overrides, m.requests, m.leading)
	return m
}

// Told notes that something was told as an Event, for the reason, a short fixed word.
func (m *Cluster) Told(reason string) { m.events.WithLabelValues(reason).Inc() }

// Override notes what became of an override, "done" or "rejected".
func (m *Cluster) Override(outcome string) { m.overrides.WithLabelValues(outcome).Inc() }

// Request notes a request to the API server.
func (m *Cluster) Request(verb, resource string, status int, took time.Duration) {
	m.requests.WithLabelValues(verb, resource, strconv.Itoa(status)).Observe(took.Seconds())
}

// Leading notes whether this process writes to the cluster.
func (m *Cluster) Leading(yes bool) {
	m.leading.Set(map[bool]float64{true: 1}[yes])
}
