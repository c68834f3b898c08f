// Command sshd lets the storage tests of Kubernetes do to a node of the lab what they do to a machine of a cloud: run a command on it.
// It answers exec requests without a terminal, and nothing else. One key is the machine's and that of whoever may come in.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"

	"golang.org/x/crypto/ssh"
)

func main() {
	address := flag.String("address", ":22", "where it listens")
	key := flag.String("key", "", "private key of the machine and of its users (required)")
	flag.Parse()
	if err := run(*address, *key); err != nil {
		slog.Error("sshd ends", "error", err)
		os.Exit(1)
	}
}

func run(address, key string) error {
	config, err := configOf(key)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		c, err := listener.Accept()
		if err != nil {
			return err
		}
		go serve(c, config)
	}
}

func configOf(key string) (*ssh.ServerConfig, error) {
	text, err := os.ReadFile(key)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	config := &ssh.ServerConfig{PublicKeyCallback: only(signer.PublicKey())}
	config.AddHostKey(signer)
	return config, nil
}

func only(user ssh.PublicKey) func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
	return func(_ ssh.ConnMetadata, offered ssh.PublicKey) (*ssh.Permissions, error) {
		if !bytes.Equal(offered.Marshal(), user.Marshal()) {
			return nil, errors.New("another key")
		}
		return nil, nil
	}
}

func serve(c net.Conn, config *ssh.ServerConfig) {
	conn, channels, requests, err := ssh.NewServerConn(c, config)
	if err != nil {
		slog.Info("refused", "from", c.RemoteAddr(), "error", err)
		return
	}
	defer conn.Close()
	go ssh.DiscardRequests(requests)
	for offered := range channels {
		if offered.ChannelType() != "session" {
			_ = offered.Reject(ssh.UnknownChannelType, "sessions only")
			continue
		}
		channel, requests, err := offered.Accept()
		if err != nil {
			return
		}
		go session(channel, requests)
	}
}

// session runs the first command that is asked for, and tells how it ended.
func session(channel ssh.Channel, requests <-chan *ssh.Request) {
	defer channel.Close()
	for r := range requests {
		var asked struct{ Command string }
		known := r.Type == "exec" && ssh.Unmarshal(r.Payload, &asked) == nil
		_ = r.Reply(known, nil)
		if known {
			go ssh.DiscardRequests(requests)
			_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{command(channel, asked.Command)}))
			return
		}
	}
}

// command returns the status that a shell would. The tests want it to be bash: they look for its words when a program is missing.
func command(channel ssh.Channel, text string) uint32 {
	c := exec.Command("/bin/bash", "-c", text)
	c.Stdout, c.Stderr = channel, channel.Stderr()
	err := c.Run()
	slog.Info("command", "text", text, "error", err)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return uint32(exit.ExitCode())
	}
	return 127
}
