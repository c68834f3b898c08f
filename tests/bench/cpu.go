package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// cpuTime is the CPU time of a measurement, user and system together.
type cpuTime struct {
	Fio    time.Duration // by fio's own account
	Engine time.Duration // of the engine process, with its io_uring workers
	Kernel time.Duration // of all kernel threads of the machine: loop devices' workers are among them, as is what others cause
}

func (c cpuTime) plus(o cpuTime) cpuTime {
	return cpuTime{c.Fio + o.Fio, c.Engine + o.Engine, c.Kernel + o.Kernel}
}

// tick is the unit of times in /proc/PID/stat: USER_HZ is 100 on every Linux.
const tick = 10 * time.Millisecond

// kthreadd is the parent of all kernel threads.
const kthreadd = 2

// procStat is what is used of /proc/PID/stat.
type procStat struct {
	parent int
	cpu    time.Duration
}

func parseStat(b []byte) (s procStat, err error) {
	end := bytes.LastIndexByte(b, ')') // the name before it may hold anything
	f := strings.Fields(string(b[max(end, 0):]))
	if end < 0 || len(f) < 14 {
		return s, fmt.Errorf("process status %q: too short", b)
	}
	// Behind the name: state, parent, … as fields 1, 2; user and system time are fields 12 and 13.
	var n [3]int
	for i, at := range []int{2, 12, 13} {
		if n[i], err = strconv.Atoi(f[at]); err != nil {
			return s, fmt.Errorf("process status: %w", err)
		}
	}
	return procStat{parent: n[0], cpu: time.Duration(n[1]+n[2]) * tick}, nil
}

func statOf(pid int) (procStat, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return procStat{}, err
	}
	return parseStat(b)
}

// processes lists the processes there are.
func processes() (pids []int, err error) {
	entries, err := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

// cpuNow is the time used so far by the engine process, 0 for none, and by kernel threads. Threads that end between two
// calls take their time with them.
func cpuNow(engine int) (c cpuTime, err error) {
	pids, err := processes()
	if err != nil {
		return c, err
	}
	for _, pid := range pids {
		s, err := statOf(pid)
		switch {
		case err != nil: // it has ended
		case pid == engine:
			c.Engine = s.cpu
		case s.parent == kthreadd:
			c.Kernel += s.cpu
		}
	}
	return c, nil
}

func (c cpuTime) since(before cpuTime) cpuTime {
	return cpuTime{Engine: c.Engine - before.Engine, Kernel: max(0, c.Kernel-before.Kernel)}
}
