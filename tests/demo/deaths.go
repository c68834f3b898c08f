package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/tests/orchestrator"
)

// nothingNoticed kills everybody in turn under a writer that must not see it.
func nothingNoticed(ctx context.Context, s *script, w *world) error {
	if err := s.check("attached; the pod writes and syncs 4 KiB, over and over", main1.Attach(ctx)); err != nil {
		return err
	}
	mount, err := orchestrator.MountOf(main1.Target)
	if err != nil {
		return err
	}
	pod := startWriter(filepath.Join(main1.Target, "busy"))
	defer pod.stop()
	for _, d := range []struct {
		what string
		kill func() error
	}{
		{"SIGKILL to the engine: belay host starts the next one", func() error { return w.KillEngine(ctx, main1) }},
		{"SIGKILL to belay host: the next host takes the device back", func() error { return w.KillHost(ctx) }},
		{"SIGKILL to belay serve, started again", func() error { return errors.Join(w.Kill(), w.Start(ctx)) }},
		{"belay upgrade to another binary, watched for 3 s", func() error { return upgrade(ctx, s, w) }},
	} {
		pod.longest.Store(0)
		err := errors.Join(d.kill(), served(ctx, w, main1), pod.goesOn(ctx))
		if err := s.check(fmt.Sprintf("%s; the pod waited %d ms at most", d.what, time.Duration(pod.longest.Load()).Milliseconds()), err); err != nil {
			return err
		}
	}
	err = pod.stop()
	if now, e := orchestrator.MountOf(main1.Target); e != nil || now != mount {
		err = errors.Join(err, e, errors.New("the volume was mounted anew"))
	}
	if err := s.check(fmt.Sprintf("%d writes synced, none failed, the mount is the same", pod.synced.Load()), err); err != nil {
		return err
	}
	if err := s.check("md5 right; detach: OK", errors.Join(wantMD5(main1, file, sum), main1.Detach(ctx))); err != nil {
		return err
	}
	r, err := newest(ctx, w, main1)
	if err == nil && r.Kind != receipt.Clean {
		err = fmt.Errorf("the receipt is %s: %s", r.Kind, r.Reason)
	}
	return s.check("the receipt is clean: nothing that happened was a loss", err)
}

// upgrade gives the volume an engine of another file, as a new version is.
func upgrade(ctx context.Context, s *script, w *world) error {
	next := filepath.Join(w.Dir, "belay-next")
	if err := orchestrator.CopyProgram(next, w.Binary); err != nil {
		return err
	}
	text, err := w.ask(ctx, 0, "upgrade", main1.ID, "--to", next)
	s.quote(text)
	return err
}

func served(ctx context.Context, w *world, v *orchestrator.Volume) error {
	return orchestrator.Until(ctx, "an engine that serves", func() (bool, error) {
		d, err := w.Served(ctx, v)
		return err == nil && d.State == host.Serving, nil
	})
}

func serverKilled(ctx context.Context, s *script, w *world) error {
	last, err := use(ctx, s, "last")
	if err != nil {
		return err
	}
	if err := s.check("SIGKILL to belay serve", w.Kill()); err != nil {
		return err
	}
	if err := s.check("belay serve starts again on the same stores", w.Start(ctx)); err != nil {
		return err
	}
	return leave(ctx, s, w, last, receipt.Clean, "the receipt is clean: the engine was there all the time")
}

func deviceLost(ctx context.Context, s *script, w *world) error {
	last, err := use(ctx, s, "lost")
	if err != nil {
		return err
	}
	if err := s.check("SIGKILL to the engine and to belay host, at once: nobody keeps the device", w.KillDevice(ctx, main1)); err != nil {
		return err
	}
	if err := leave(ctx, s, w, last, receipt.Fenced, "the receipt says that the writer was shut out before it had flushed"); err != nil {
		return err
	}
	return s.check("deleted", main1.Delete(ctx))
}

// written is a file that was synced.
type written struct{ name, md5 string }

// use has the pod write and sync a file, and end.
func use(ctx context.Context, s *script, name string) (written, error) {
	if err := s.check("attached", main1.Attach(ctx)); err != nil {
		return written{}, err
	}
	md5, err := write(main1, name, "the block of "+name, 4*mib)
	return written{name, md5}, s.check("4 MiB written and synced, unpublished from the pod", errors.Join(err, main1.Unpublish(ctx)))
}

// leave finishes the detach, and looks for what was synced.
func leave(ctx context.Context, s *script, w *world, last written, kind receipt.Kind, says string) error {
	err := orchestrator.Until(ctx, "NodeUnstage", func() (bool, error) { return main1.Unstage(ctx) == nil, nil })
	if err := s.check("NodeUnstage and ControllerUnpublish: finished from the stage journal", errors.Join(err, main1.ControllerUnpublish(ctx))); err != nil {
		return err
	}
	r, err := newest(ctx, w, main1)
	if err == nil && r.Kind != kind {
		err = fmt.Errorf("the receipt is %s", r.Kind)
	}
	if err := s.check(says, err); err != nil {
		return err
	}
	s.quote(fmt.Sprintf("%s %s", r.Kind, r.Reason))
	if err := s.check("attached again: everything that was synced is there", errors.Join(main1.Attach(ctx), wantMD5(main1, file, sum), wantMD5(main1, last.name, last.md5))); err != nil {
		return err
	}
	return s.check("detached", errors.Join(main1.Detach(ctx), os.RemoveAll(filepath.Join(w.Dir, "belay-next"))))
}
