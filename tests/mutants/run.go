package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// ration is a row of seeds for one process: n of them, from kill.seed on.
type ration struct {
	kill
	step uint64
	n    int
}

// outcome is what the simulation says of a seed; its beginning has no Hash and no Simulated.
type outcome struct {
	Seed      uint64        `json:"seed"`
	Failure   string        `json:"failure"`
	Simulated time.Duration `json:"simulated"`
}

// run has a process run the ration until a seed fails, the trial is over, or there are no more. What comes after a seed that has ended
// its process is run by another one.
func (t *trial) run(ctx context.Context, r ration) {
	for r.n > 0 && ctx.Err() == nil {
		at, done, err := t.process(ctx, r)
		if err == nil || ctx.Err() != nil {
			return
		}
		t.died(at, r.profile, err)
		r.seed, r.n = at+r.step, r.n-done-1
	}
}

func (t *trial) process(ctx context.Context, r ration) (at uint64, done int, err error) {
	said, says, err := os.Pipe()
	if err != nil {
		return r.seed, 0, err
	}
	defer said.Close()
	cmd := exec.CommandContext(ctx, t.lab.program, "-test.run=^TestSeeds$", "-test.timeout=0",
		fmt.Sprintf("-sim.ration=%d,%d,%d", r.seed, r.step, r.n), "-sim.profile="+r.profile)
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &text, &text, []*os.File{says}
	cmd.Env = append(os.Environ(), "BELAY_MUTANT="+t.mutant)
	err = cmd.Start()
	says.Close()
	if err != nil {
		return r.seed, 0, err
	}
	at = r.seed
	for lines := bufio.NewScanner(said); lines.Scan(); {
		var o outcome
		if json.Unmarshal(lines.Bytes(), &o) != nil {
			continue
		}
		if at = o.Seed; o.Simulated != 0 {
			done++
			if !t.add(o, r.profile) {
				break
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		return at, done, fmt.Errorf("%w: %s", err, headline(text.Bytes()))
	}
	return at, done, nil
}

// headline is the line that says why a process died.
func headline(text []byte) []byte {
	for line := range bytes.Lines(text) {
		for _, mark := range []string{"panic: ", "fatal error: ", "--- FAIL"} {
			if bytes.HasPrefix(line, []byte(mark)) {
				return bytes.TrimSpace(line)
			}
		}
	}
	return nil
}
