package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// FuzzServeFlags: what `belay serve` is told is refused by the name of a flag, or is something that it can do.
func FuzzServeFlags(f *testing.F) {
	f.Add("--store=/a\n--store\n/b/\n--nodeid=n1")
	f.Add("--store=/a\n--store=/a/.\n--nodeid=n1")
	f.Add("--store=/a\n--nodeid=n1\n--endpoint=unix:///run/../run/x.sock\n--admin-socket=/run/x.sock\n-v=2")
	f.Add("--store=/a\n--nodeid=n1\n--overcommit=NaN\n--forgotten-after=1h\n--log-format=json")
	f.Add("--store=/a\n--nodeid=n1\n--drivername=-x\n--http-endpoint=:1\n--state=/s/")
	f.Fuzz(func(t *testing.T, line string) {
		c, flags := &serveConfig{}, pflag.NewFlagSet("serve", pflag.ContinueOnError)
		flags.SetOutput(io.Discard)
		c.addFlags(flags)
		if flags.Parse(strings.Split(line, "\n")) != nil || c.NodeID == "" {
			return
		}
		if err := c.validate(); err != nil {
			if !errors.As(err, new(usageError)) || !strings.Contains(err.Error(), "-") {
				t.Errorf("%q: %v", line, err)
			}
			return
		}
		checkServe(t, line, c)
		again := *c
		if err := again.validate(); err != nil || !reflect.DeepEqual(&again, c) {
			t.Errorf("%q is %+v, and that %+v, %v", line, c, again, err)
		}
	})
}

func checkServe(t *testing.T, line string, c *serveConfig) {
	t.Helper()
	paths := append([]string{c.csiSocket}, c.Stores...)
	for i, p := range paths {
		if filepath.Join("/", p) != p || slices.Contains(paths[1:max(i, 1)], p) {
			t.Errorf("%q: path %q", line, p)
		}
	}
	if c.csiSocket == filepath.Clean(c.AdminSocket) || !filepath.IsAbs(c.State) || len(c.Stores) == 0 {
		t.Errorf("%q: %+v", line, c)
	}
	if !(c.Overcommit >= 1) || c.ForgottenAfter <= 0 || c.Verbosity < 0 || len(c.DriverName) > 63 || strings.ContainsAny(c.DriverName, "/ \n") {
		t.Errorf("%q: %+v", line, c)
	}
}

// FuzzCommandLine: whatever a verb is told, where no server runs it does nothing: it explains itself, complains of its usage, or says that
// there is none.
func FuzzCommandLine(f *testing.F) {
	verbs := []string{"volumes", "why", "history", "receipts", "verify", "fence", "salvage", "upgrade", "version"}
	f.Add(uint8(5), "pvc-1\n--epoch\n7\n--reason=it burns")
	f.Add(uint8(6), "pvc-1\n--from=/a\n--reason\nx\n--yes\n--kill")
	f.Add(uint8(7), "--all\n--to=/x\n--pace=-1s\n--keep-going")
	f.Add(uint8(7), "pvc-1\n--to=/x\n--keep-going")
	f.Add(uint8(2), "pvc-1\n--last=-1\n-o\njson")
	f.Add(uint8(3), "--\n-o")
	f.Add(uint8(5), "pvc-1\n--epoch=18446744073709551616")
	none := filepath.Join(f.TempDir(), "none.sock")
	f.Fuzz(func(t *testing.T, verb uint8, line string) {
		if strings.Contains(line, "sock") {
			return // it shall ask nobody else
		}
		name := verbs[int(verb)%len(verbs)]
		var out, complaint bytes.Buffer
		args := append([]string{name, "--socket", none}, strings.Split(line, "\n")...)
		code := run(context.Background(), args, strings.NewReader(""), &out, &complaint)
		explains := strings.Contains(out.String(), "Usage:") || name == "version"
		switch {
		case code == exitOK && !explains:
			t.Errorf("%q: it answers %q, and nobody was asked", args, out.String())
		case code != exitOK && complaint.Len() == 0:
			t.Errorf("%q: exit code %d, and no word", args, code)
		case code != exitOK && code != exitUsage && !strings.Contains(out.String()+complaint.String(), none): // upgrade tells it of each volume
			t.Errorf("%q: exit code %d: %s", args, code, complaint.String())
		}
	})
}
