// Command demo tells Belay's story on this machine: it plays the container orchestrator over the real CSI socket of a real server, one line a step.
//
// Run it as root by `make demo`. It leaves nothing behind, and its exit code is 0 where every step went as it should.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// within bounds the whole story; it takes a fraction of it where nothing hangs.
const within = 4 * time.Minute

func main() {
	binary := flag.String("belay", "bin/belay", "the binary to show")
	where := flag.String("dir", "/var/tmp", "directory on a real disk in which the stores are made")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if err := run(ctx, *binary, *where); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary, where string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("it mounts real filesystems: run it as root")
	}
	binary, err = filepath.Abs(binary)
	if err != nil {
		return err
	}
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("%w; `make build` makes it", err)
	}
	w, err := newWorld(binary, where)
	if err != nil {
		return err
	}
	s := newScript(os.Stdout)
	defer func() {
		if err != nil {
			s.quote("the server's log ends with\n" + w.LogEnd())
		}
		_ = s.check("nothing is left behind: no mount, device, process or stage", w.Close())
		err = errors.Join(err, s.end())
	}()
	for _, chapter := range story {
		s.heading(chapter.title)
		if err := chapter.tell(ctx, s, w); err != nil {
			return err
		}
	}
	return nil
}

// chapter is a part of the story. An error ends the story: what follows could not make sense.
type chapter struct {
	title string
	tell  func(ctx context.Context, s *script, w *world) error
}

var story = []chapter{
	{"A volume is provisioned, used and let go of", theMainJob},
	{"The receipt", theReceipt},
	{"Attached again", attachedAgain},
	{"Refused: detach while staged", heldRefused},
	{"A byte flipped in a block written since the last verification", freshFlip},
	{"A byte flipped in an old block", oldFlip},
	{"The background verifier", backgroundFlip},
	{"Refused: two of three stores gone", storesGone},
	{"Everybody killed in turn under a mount, and an upgrade: nothing is noticed", nothingNoticed},
	{"The server killed between unpublish and unstage", serverKilled},
	{"Host and engine killed together", deviceLost},
	{"Refused: a block on which no copy can win", noCopyWins},
}
