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

// memory is that of an engine process, in MiB.
type memory struct {
	After     string  `json:"after"`
	Anonymous float64 `json:"rssAnonMiB"`
	Resident  float64 `json:"vmRSSMiB"` // with the pages of the program itself, which all engines share
}

// measureMemory reads the memory of an idle engine of a large volume: just attached, and after work.
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
	pid, err := engineOf(id)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	d.memory = append(d.memory, memory{after, statusMiB(string(b), "RssAnon"), statusMiB(string(b), "VmRSS")})
	return nil
}

// statusMiB reads an amount of /proc/PID/status, which gives it in KiB; 0 where it is not there.
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
