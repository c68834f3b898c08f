package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Times of leader election: those of the sidecars.
const (
	leaseDuration = 15 * time.Second // so long others wait after the leader was heard last
	renewDeadline = 10 * time.Second // so long the leader goes on without having been able to renew
	renewEvery    = 5 * time.Second
	renewAgain    = time.Second // where a renewal failed
)

// Elector has one process of several lead, by a Lease, with the algorithm of client-go's leaderelection; see DESIGN.md for why it is not that. Two may lead for a
// moment where one of them does not get on with its work for longer than leaseDuration - renewDeadline.
type Elector struct {
	api                       *API
	namespace, name, identity string
	log                       *slog.Logger

	seen   string // what the Lease said when it changed last
	seenAt time.Time
	told   string // the trouble that kept it from leading when it tried last
}

// NewElector returns an elector for the Lease of the name. identity is this process's own.
func NewElector(a *API, namespace, name, identity string, log *slog.Logger) *Elector {
	return &Elector{api: a, namespace: namespace, name: name, identity: identity, log: log}
}

// errHeld says that another one leads.
var errHeld = errors.New("another one leads")

// Run calls lead whenever this process leads, until ctx ends; the context of lead ends when it leads no more, and the next election waits until lead
// has returned. The Lease is given back at the end.
func (e *Elector) Run(ctx context.Context, lead func(ctx context.Context)) {
	for ctx.Err() == nil {
		if err := e.take(ctx); err != nil {
			e.following(ctx, err)
			pause(ctx, renewEvery)
			continue
		}
		e.log.Info("leading", "lease", e.name, "identity", e.identity)
		e.lead(ctx, lead)
		e.log.Info("not leading any more", "lease", e.name, "identity", e.identity)
	}
}

// following tells why this process does not lead, where that is something else than one that does.
func (e *Elector) following(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return // it stops
	}
	level, trouble := slog.LevelDebug, ""
	if !errors.Is(err, errHeld) && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
		trouble = err.Error()
	}
	if trouble != "" && trouble != e.told {
		level = slog.LevelWarn
	}
	e.told = trouble
	e.log.Log(ctx, level, "not leading", "lease", e.name, "error", err)
}

// lead runs lead for as long as the Lease is renewed in time.
func (e *Elector) lead(ctx context.Context, lead func(ctx context.Context)) {
	own, stop := context.WithCancel(ctx)
	var working sync.WaitGroup
	working.Go(func() { lead(own) })
	e.renew(ctx)
	stop()
	working.Wait()
	if ctx.Err() != nil {
		e.release()
	}
}

// renew returns when the Lease could not be renewed in time, when another one has it, or when ctx ends.
func (e *Elector) renew(ctx context.Context) {
	renewed, next := time.Now(), renewEvery
	for {
		pause(ctx, min(next, time.Until(renewed.Add(renewDeadline))))
		start := time.Now()
		bounded, cancel := context.WithDeadline(ctx, renewed.Add(renewDeadline))
		err := e.take(bounded)
		cancel()
		switch {
		case ctx.Err() != nil, errors.Is(err, errHeld):
			return
		case err == nil:
			renewed, next = start, renewEvery
		case time.Since(renewed) >= renewDeadline:
			e.log.Warn("the lease could not be renewed in time", "lease", e.name, "error", err)
			return
		default:
			next = renewAgain
		}
	}
}

// take makes the Lease ours, or renews it. errHeld where another one has it and may still lead.
func (e *Elector) take(ctx context.Context) error {
	leases := e.api.leases(e.namespace)
	l, err := leases.get(ctx, e.name)
	if apierrors.IsNotFound(err) {
		l = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: e.name, Namespace: e.namespace}}
		e.sign(l)
		_, err = leases.create(ctx, l)
		return err
	}
	if err != nil {
		return err
	}
	if e.held(l) {
		return fmt.Errorf("%w: %s", errHeld, holder(l))
	}
	e.sign(l)
	_, err = leases.update(ctx, e.name, l) // by resourceVersion: of several that try, one does
	return err
}

// held says that another one has the Lease, and was heard within its duration on our own clock.
func (e *Elector) held(l *coordinationv1.Lease) bool {
	if holder(l) == "" || holder(l) == e.identity {
		return false
	}
	now := time.Now()
	if says := fmt.Sprint(holder(l), l.Spec.RenewTime, l.Spec.LeaseTransitions); says != e.seen {
		e.seen, e.seenAt = says, now
	}
	return now.Sub(e.seenAt) < leaseDuration
}

func holder(l *coordinationv1.Lease) string {
	if l.Spec.HolderIdentity == nil {
		return ""
	}
	return *l.Spec.HolderIdentity
}

// sign makes the Lease ours from now on.
func (e *Elector) sign(l *coordinationv1.Lease) {
	now, seconds := metav1.NowMicro(), int32(leaseDuration/time.Second)
	if holder(l) != e.identity {
		transitions := int32(0)
		if l.Spec.LeaseTransitions != nil {
			transitions = *l.Spec.LeaseTransitions + 1
		}
		l.Spec.AcquireTime, l.Spec.LeaseTransitions = &now, &transitions
	}
	l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime = &e.identity, &seconds, &now
}

// release gives the Lease back, so that the next one need not wait.
func (e *Elector) release() {
	ctx, cancel := context.WithTimeout(context.Background(), renewEvery)
	defer cancel()
	leases := e.api.leases(e.namespace)
	l, err := leases.get(ctx, e.name)
	if err != nil || holder(l) != e.identity {
		return
	}
	nobody := ""
	l.Spec.HolderIdentity = &nobody
	if _, err := leases.update(ctx, e.name, l); err != nil {
		e.log.Debug("the lease was not given back; it runs out", "lease", e.name, "error", err)
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
