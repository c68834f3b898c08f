package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const (
	// kubectlGrace is what a kubectl that was asked to stop has left.
	kubectlGrace = 5 * time.Second
	// saidMax is how much of what kubectl says last is kept to be looked at.
	saidMax = 8 << 10
)

// passedOn is the exit code of a program that has said itself what was wrong.
type passedOn struct {
	code   int
	advice string // what is to be added to that; may be empty
}

func (p passedOn) Error() string { return fmt.Sprintf("exit code %d", p.code) }

// kubectlError is a kubectl that failed.
type kubectlError struct {
	what   string // the command line, without what connects it
	said   string
	code   int
	advice string
}

func (e *kubectlError) Error() string {
	out := e.what + ": " + e.said
	if e.advice != "" {
		out += "\n" + e.advice
	}
	return out
}

// brief is the error without the command line, for where that is plain.
func brief(err error) string {
	if failed, ok := errors.AsType[*kubectlError](err); ok {
		return strings.TrimSuffix(failed.said+"; "+failed.advice, "; ")
	}
	return err.Error()
}

// call is a run of kubectl.
type call struct {
	args        []string
	needs       string // the right that is missing where it is forbidden
	in          io.Reader
	out, errOut io.Writer // errOut may be nil
}

// do runs kubectl. A *kubectlError where it ends with another exit code than 0.
func (k *plugin) do(ctx context.Context, c call) error {
	said := &tail{}
	cmd := exec.CommandContext(ctx, k.program(), append(k.common(), c.args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.in, c.out, said
	if c.errOut != nil {
		cmd.Stderr = io.MultiWriter(c.errOut, said)
	}
	// A kubectl that is asked stops what it has begun, where it can.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = kubectlGrace
	err := cmd.Run()
	exit, exited := errors.AsType[*exec.ExitError](err)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !exited:
		return fmt.Errorf("%w; kubectl must be in PATH, or in $KUBECTL", err)
	}
	text := strings.TrimSpace(string(said.kept))
	return &kubectlError{what: k.program() + " " + strings.Join(c.args, " "), said: text, code: max(exit.ExitCode(), exitFailed), advice: k.advice(text, c.needs)}
}

// advice is what to do about an answer of the API server.
func (k *plugin) advice(said, needs string) string {
	switch said = strings.ToLower(said); {
	case strings.Contains(said, "forbidden"):
		return "this needs " + needs
	case strings.Contains(said, `deployments.apps "belay-controller" not found`), strings.Contains(said, `namespaces "`+strings.ToLower(k.belay)+`" not found`):
		return fmt.Sprintf("Belay's controller is not in namespace %s; --belay-namespace names another", k.belay)
	}
	return ""
}

// read is what kubectl prints.
func (k *plugin) read(ctx context.Context, needs string, args ...string) ([]byte, error) {
	var out bytes.Buffer
	err := k.do(ctx, call{args: args, needs: needs, out: &out})
	return out.Bytes(), err
}

// pass runs kubectl in this program's place.
func (k *plugin) pass(cmd *cobra.Command, in io.Reader, needs string, args []string) error {
	return passing(k.do(cmd.Context(), call{args: args, needs: needs, in: in, out: cmd.OutOrStdout(), errOut: cmd.ErrOrStderr()}))
}

// passing is the error of a kubectl whose words were shown already.
func passing(err error) error {
	if failed, ok := errors.AsType[*kubectlError](err); ok {
		return passedOn{failed.code, failed.advice}
	}
	return err
}

// objects are what kubectl prints with -o json: a list, one object, or nothing.
func objects[T any](ctx context.Context, k *plugin, needs string, args ...string) ([]T, error) {
	raw, err := k.read(ctx, needs, append(args, "-o", "json")...)
	if err != nil || len(bytes.TrimSpace(raw)) == 0 {
		return nil, err
	}
	var list struct {
		Kind  string `json:"kind"`
		Items []T    `json:"items"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("what `kubectl %s` prints is not understood: %w", strings.Join(args, " "), err)
	}
	if strings.HasSuffix(list.Kind, "List") {
		return list.Items, nil
	}
	var one T
	if err := json.Unmarshal(raw, &one); err != nil {
		return nil, fmt.Errorf("what `kubectl %s` prints is not understood: %w", strings.Join(args, " "), err)
	}
	return []T{one}, nil
}

// tail keeps the end of what is written to it.
type tail struct{ kept []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	t.kept = t.kept[max(0, len(t.kept)-saidMax):]
	return len(p), nil
}
