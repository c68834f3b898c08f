package mtls

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var now = time.Now()

func authority(t *testing.T, former *Authority) *Authority {
	t.Helper()
	a, err := NewAuthority(now, former)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t *testing.T, a *Authority, role Role) Certificate {
	t.Helper()
	c, err := a.Issue(role, now)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func write(t *testing.T, dir string, c Certificate) {
	t.Helper()
	if err := c.Write(dir); err != nil {
		t.Fatal(err)
	}
}

func files(t *testing.T, c Certificate) *Files {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, c)
	return Open(dir)
}

// talk has a server of the node's files say hello, and returns what the client hears.
func talk(t *testing.T, server, client *Files, asks Role, protocol string) (string, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	parts := Split(l, server.Server(Controller, "h2", "http/1.1"), nil, "h2", "http/1.1")
	defer l.Close()
	for name, part := range parts {
		go func() {
			for {
				c, err := part.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, "hello over "+name+"\n")
				c.Close()
			}
		}()
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", l.Addr().String(), client.Client(asks, protocol))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return bufio.NewReader(conn).ReadString('\n') // in TLS 1.3 a client learns only now that it was refused
}

func TestRolesKnowEachOther(t *testing.T) {
	a := authority(t, nil)
	node, controller := files(t, issue(t, a, Node)), files(t, issue(t, a, Controller))
	for _, protocol := range []string{"h2", "http/1.1"} {
		if heard, err := talk(t, node, controller, Node, protocol); err != nil || heard != "hello over "+protocol+"\n" {
			t.Errorf("%s: heard %q, %v", protocol, heard, err)
		}
	}
}

func TestStrangersAreRefused(t *testing.T) {
	a, other := authority(t, nil), authority(t, nil)
	node, controller := files(t, issue(t, a, Node)), files(t, issue(t, a, Controller))
	for name, c := range map[string]struct {
		server, client *Files
	}{
		"a node that poses as the controller":       {node, files(t, issue(t, a, Node))},
		"a controller of another installation":      {node, files(t, issue(t, other, Controller))},
		"a node of another installation":            {files(t, issue(t, other, Node)), controller},
		"a controller that poses as a node":         {files(t, issue(t, a, Controller)), controller},
		"a client that trusts all, certificateless": {node, Open(t.TempDir())},
	} {
		if heard, err := talk(t, c.server, c.client, Node, "h2"); err == nil {
			t.Errorf("%s: heard %q", name, heard)
		}
	}
}

func TestFilesAreReadAgain(t *testing.T) {
	first := authority(t, nil)
	second := authority(t, first)
	dir := t.TempDir()
	node, controller := Open(dir), files(t, issue(t, first, Controller))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := node.Wait(ctx, nil); err == nil {
		t.Fatal("no files, and Wait returned")
	}
	write(t, dir, issue(t, first, Node))
	if err := node.Wait(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := talk(t, node, controller, Node, "h2"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, FileKey), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := talk(t, node, controller, Node, "h2"); err != nil {
		t.Fatal("while files are being written:", err)
	}
	write(t, dir, issue(t, second, Node)) // trusts what the first signed, and the controller does not trust the second yet
	if _, err := talk(t, node, controller, Node, "h2"); err == nil {
		t.Fatal("the controller took a certificate of an authority that it does not know")
	}
	if _, err := talk(t, node, files(t, issue(t, second, Controller)), Node, "h2"); err != nil {
		t.Fatal(err)
	}
	if _, err := talk(t, files(t, issue(t, first, Node)), files(t, issue(t, second, Controller)), Node, "h2"); err == nil {
		t.Fatal("the old node took a controller of the second authority")
	}
}

func TestCheck(t *testing.T) {
	a, other := authority(t, nil), authority(t, nil)
	c := issue(t, a, Node)
	renew, err := a.Check(c, Node, now)
	if err != nil || !renew.After(now.Add(leafLife/2)) || !renew.Before(now.Add(leafLife)) {
		t.Errorf("renew at %v, %v", renew, err)
	}
	again, err := ParseAuthority(a.Trusted, a.KeyPEM)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Check(c, Node, now); err != nil {
		t.Errorf("read again: %v", err)
	}
	stripped := c
	stripped.CA = other.Trusted
	keyless := c
	keyless.Key = nil
	mixed := c
	mixed.Key = issue(t, a, Node).Key
	for name, f := range map[string]func() error{
		"another role":      func() error { _, err := a.Check(c, Controller, now); return err },
		"another authority": func() error { _, err := other.Check(c, Node, now); return err },
		"expired":           func() error { _, err := a.Check(c, Node, now.Add(2*leafLife)); return err },
		"other trust":       func() error { _, err := a.Check(stripped, Node, now); return err },
		"no key":            func() error { _, err := a.Check(keyless, Node, now); return err },
		"another's key":     func() error { _, err := a.Check(mixed, Node, now); return err },
		"empty":             func() error { _, err := a.Check(Certificate{}, Node, now); return err },
		"mixed authority":   func() error { _, err := ParseAuthority(a.Trusted, other.KeyPEM); return err },
		"a leaf as one":     func() error { _, err := ParseAuthority(c.Cert, c.Key); return err },
	} {
		if err := f(); !errors.Is(err, ErrUnusable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	next := authority(t, a)
	if !bytes.HasSuffix(next.Trusted, a.Trusted) {
		t.Error("a successor does not trust what its predecessor signed")
	}
}
