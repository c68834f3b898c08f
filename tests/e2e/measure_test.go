package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestFigures measures, and asserts nothing about time: how long users wait, what a volume costs the API server, and how much memory each role takes.
func TestFigures(t *testing.T) {
	c := start(t)
	var running, receipt []time.Duration
	writes := map[string]int{}
	const rounds = 5
	for round := range rounds {
		name := fmt.Sprintf("data%d", round)
		began := time.Now()
		c.apply(shape{}.manifest(name))
		c.kubectl("wait", "--for=condition=Ready", "pod", "-l", "app="+name, "--timeout="+patience.String())
		running = append(running, time.Since(began))
		w := writer{c, name}
		c.eventually("it writes", func() error { return w.wrote(20) })
		p, handle, volume := w.running(), w.handle(), c.volumeName(name)
		if round == 0 {
			memory(c, p.Spec.NodeName, id(handle))
		}
		ended := time.Now()
		w.scale("Deployment", 0)
		c.eventually("a receipt", c.newestReceipt(handle, 1, "clean"))
		all, err := c.receipts(handle)
		if err != nil {
			t.Fatal(err)
		}
		receipt = append(receipt, all[0].At.Sub(ended))
		c.eventually("detached", c.detached(volume))
		time.Sleep(2 * time.Second) // Events follow
		c.countWrites(began, volume, writes)
	}
	figure("PVC applied to pod ready: %s", spread(running))
	figure("pod deleted to receipt (its process ends at once): %s", spread(receipt))
	for _, what := range slices.Sorted(maps.Keys(writes)) {
		figure("API writes for one attach and detach: %4.1f %s", float64(writes[what])/rounds, what)
	}
}

func spread(d []time.Duration) string {
	slices.Sort(d)
	return fmt.Sprintf("least %.2f s, median %.2f s, most %.2f s of %d", d[0].Seconds(), d[len(d)/2].Seconds(), d[len(d)-1].Seconds(), len(d))
}

// countWrites adds the writes to the API since then that concern attaching the volume, by who made them.
func (c *cluster) countWrites(since time.Time, volume string, into map[string]int) {
	c.Helper()
	lines := bufio.NewScanner(strings.NewReader(c.lab("log", "audit")))
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e struct {
			Verb                     string
			RequestReceivedTimestamp time.Time
			User                     struct{ Username string }
			ObjectRef                struct{ Resource, Subresource, Name string }
		}
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.RequestReceivedTimestamp.Before(since) {
			continue
		}
		who := e.User.Username[strings.LastIndex(e.User.Username, ":")+1:]
		ours := strings.HasPrefix(e.User.Username, "system:serviceaccount:"+system)
		what := strings.TrimSuffix(e.ObjectRef.Resource+"/"+e.ObjectRef.Subresource, "/")
		if what == "volumeattachments" || what == "volumeattachments/status" || ours && what != "leases" && what != "csistoragecapacities" {
			into[fmt.Sprintf("%s %s by %s", e.Verb, what, who)]++
		}
	}
}

// memory tells how much every role takes with one volume in use; the controllers may be on another node.
func memory(c *cluster, node, volume string) {
	for role, words := range map[string]string{"node": "belay node", "host": "belay host", "engine of one volume": "belay engine " + volume, "controller": "belay controller"} {
		out, err := c.onNode(node, fmt.Sprintf(`for p in $(pgrep -f '^(/usr/bin/)?%s'); do awk '/^(Rss|Private_Clean|Private_Dirty):/{s[$1]+=$2}END{print int(s["Rss:"]/1024), int((s["Private_Clean:"]+s["Private_Dirty:"])/1024)}' /proc/$p/smaps_rollup; done | sort -n | tail -n 1`, words))
		var rss, private int
		if _, scanErr := fmt.Sscan(out, &rss, &private); err == nil && scanErr == nil {
			figure("memory of %s: %d MiB resident, %d MiB of it private", role, rss, private)
		}
	}
}
