package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/belay-storage/belay/pkg/volume"
)

// memory is that of a process, in MiB.
type memory struct {
	Of           string  `json:"of"` // "engine" or "host"
	After        string  `json:"after"`
	Anonymous    float64 `json:"rssAnonMiB"`
	Resident     float64 `json:"vmRSSMiB"` // with the pages of the program itself, which all processes of it share
	Proportional float64 `json:"pssMiB"`   // with its share of them
}

// measureMemory reads the memory of the host and of an idle engine of a large volume: just attached, and after work.
func (d *detaching) measureMemory(ctx context.Context) error {
	if d.options.idle == 0 {
		return nil
	}
	a, dev, err := d.rig.attach(ctx, idOf(volume.TiB))
	if err != nil {
		return err
	}
	if err := d.readMemory(ctx, a.Volume, "just attached"); err != nil {
		return err
	}
	if err := d.write(dev, detachKind{volume.TiB, 256}); err != nil {
		return err
	}
	if err := d.readMemory(ctx, a.Volume, "256 MiB written before"); err != nil {
		return err
	}
	return d.rig.remove(ctx, a)
}

func (d *detaching) readMemory(ctx context.Context, id volume.ID, after string) error {
	fmt.Fprintf(d.say, "idle for %s: %s\n", d.options.idle, after)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d.options.idle):
	}
	engine, err := d.rig.engineOf(ctx, id)
	if err != nil {
		return err
	}
	about, err := d.rig.host.About(ctx)
	if err != nil {
		return err
	}
	for _, p := range []struct {
		of  string
		pid int
	}{{"engine", engine}, {"host", about.PID}} {
		m, err := memoryOf(p.pid)
		if err != nil {
			return err
		}
		m.Of, m.After = p.of, after
		d.memory = append(d.memory, m)
	}
	return nil
}

func memoryOf(pid int) (memory, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, err
	}
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	return memory{
		Anonymous: statusMiB(string(status), "RssAnon"), Resident: statusMiB(string(status), "VmRSS"), Proportional: statusMiB(string(rollup), "Pss"),
	}, err
}

// statusMiB reads an amount of /proc/PID/status or smaps_rollup, which give it in KiB; 0 where it is not there.
func statusMiB(status, name string) float64 {
	for line := range strings.Lines(status) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == name+":" && f[2] == "kB" {
			kib, _ := strconv.ParseFloat(f[1], 64)
			return kib / 1024
		}
	}
	return 0
}
