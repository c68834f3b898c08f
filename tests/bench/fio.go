package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/belay-storage/belay/pkg/volume"
)

// lookFor returns an error that names every program that is not installed.
func lookFor(tools ...string) error {
	var errs []error
	for _, t := range tools {
		if _, err := exec.LookPath(t); err != nil {
			errs = append(errs, fmt.Errorf("%w: make deps installs it", err))
		}
	}
	return errors.Join(errs...)
}

// load is what fio is asked to do.
type load struct {
	workload
	// jobs run beside each other; each has one or more files, and picks one of several at random for every request.
	jobs [][]string
	size volume.Bytes // of each file
	// seconds is how long; 0: until every file has been gone through once.
	seconds float64
}

// fioArgs gives the command line. Every run of writes ends in a flush that counts in its time: what is left undone
// when the clock stops is not a gain.
func (l load) fioArgs() []string {
	args := []string{
		"--output-format=json+", "--name=global", "--thread", "--ioengine=libaio", "--direct=1", "--norandommap", "--randrepeat=0", "--end_fsync=1",
		"--rw=" + l.rw, "--bs=" + strconv.FormatInt(int64(l.block), 10), "--iodepth=" + strconv.Itoa(l.depth),
		"--file_service_type=random",
	}
	if l.seconds > 0 {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%dms", int(l.seconds*1000)))
	}
	if l.sync {
		args = append(args, "--fdatasync=1")
	}
	for i, files := range l.jobs {
		each := l.size * volume.Bytes(len(files)) // fio divides the size of a job among its files
		args = append(args, fmt.Sprintf("--name=job%d", i), "--filename="+strings.Join(files, ":"), "--size="+strconv.FormatInt(int64(each), 10))
	}
	return args
}

// fioResult is fio's output, as far as it is used.
type fioResult struct {
	Jobs []fioJob `json:"jobs"`
}

type fioJob struct {
	Error   int     `json:"error"`
	User    float64 `json:"usr_cpu"` // percent of Runtime
	System  float64 `json:"sys_cpu"`
	Runtime float64 `json:"job_runtime"` // milliseconds
	Read    fioSide `json:"read"`
	Write   fioSide `json:"write"`
	Sync    struct {
		Latency fioLatency `json:"lat_ns"`
	} `json:"sync"`
}

type fioSide struct {
	Total   int64      `json:"total_ios"`
	Bytes   int64      `json:"io_bytes"`
	Runtime float64    `json:"runtime"` // milliseconds
	Latency fioLatency `json:"clat_ns"`
}

type fioLatency struct {
	Bins map[string]int64 `json:"bins"` // nanoseconds and how often
}

// runFIO runs the load and returns what fio measured.
func runFIO(ctx context.Context, l load) (fioResult, error) {
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, "fio", l.fioArgs()...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return fioResult{}, fmt.Errorf("fio %s: %w: %s %s", strings.Join(l.fioArgs(), " "), err, said.String(), tail(out.String()))
	}
	return parseFIO(out.Bytes())
}

func parseFIO(out []byte) (r fioResult, err error) {
	if at := bytes.IndexByte(out, '{'); at > 0 { // notes of fio come first
		out = out[at:]
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("output of fio: %w", err)
	}
	for _, j := range r.Jobs {
		if j.Error != 0 {
			err = errors.Join(err, fmt.Errorf("fio: a job failed with error %d", j.Error))
		}
	}
	return r, err
}

func tail(s string) string { return s[max(0, len(s)-500):] }

// sample turns fio's measure of a load into ours. copies is how many of fio's operations make one of the workload's.
func (r fioResult) sample(copies int) sample {
	s := sample{latency: histogram{}, sync: histogram{}}
	for _, j := range r.Jobs {
		s.ops += float64(j.Read.Total + j.Write.Total)
		s.bytes += float64(j.Read.Bytes + j.Write.Bytes)
		s.seconds = max(s.seconds, j.Read.Runtime/1000, j.Write.Runtime/1000)
		s.cpu.Fio += time.Duration((j.User + j.System) / 100 * j.Runtime * float64(time.Millisecond))
		s.latency.add(j.Read.Latency.Bins)
		s.latency.add(j.Write.Latency.Bins)
		s.sync.add(j.Sync.Latency.Bins)
	}
	s.ops /= float64(copies)
	s.bytes /= float64(copies)
	return s
}
