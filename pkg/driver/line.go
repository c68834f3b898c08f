package driver

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/belay-storage/belay/pkg/volume"
)

// How long it takes until a machine counts as one that does not answer: connectWithin for a new connection, silentAfter and silentWithin together where one is
// open. A call itself takes as long as it takes.
const (
	connectWithin = 5 * time.Second
	silentAfter   = 10 * time.Second
	silentWithin  = 5 * time.Second
)

// answeredKey is the trailer by which a driver's own answer is told from a failure on the way to it.
const answeredKey = "belay-answered"

// awayError says that a machine does not answer, and why.
type awayError struct{ cause error }

func (e *awayError) Error() string { return "does not answer: " + e.cause.Error() }
func (e *awayError) Unwrap() error { return e.cause }

// Away says that a Router's error is of a machine that did not answer, and not its answer.
func Away(err error) bool {
	_, away := errors.AsType[*awayError](err)
	return away
}

// lines are connections to machines, each kept while the machine's address stays. Safe for concurrent use.
type lines struct {
	machines    Machines
	credentials credentials.TransportCredentials

	mu   sync.Mutex
	open map[volume.NodeID]*line
}

type line struct {
	address string
	*grpc.ClientConn
}

// to returns the connection to the machine, which may turn out to be dead. An awayError where it has no address.
func (l *lines) to(ctx context.Context, node volume.NodeID) (*grpc.ClientConn, error) {
	address, err := l.machines.Address(ctx, node)
	if err != nil {
		return nil, &awayError{err}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if known := l.open[node]; known != nil {
		if known.address == address {
			return known.ClientConn, nil
		}
		_ = known.Close() // calls on it fail: it leads to a machine that is not there any more
		delete(l.open, node)
	}
	conn, err := dial(address, l.credentials)
	if err != nil {
		return nil, err
	}
	if l.open == nil {
		l.open = map[volume.NodeID]*line{}
	}
	l.open[node] = &line{address, conn}
	return conn, nil
}

// forget closes the connection to a machine that is none of ours any more.
func (l *lines) forget(node volume.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if known := l.open[node]; known != nil {
		_ = known.Close()
		delete(l.open, node)
	}
}

func dial(address string, c credentials.TransportCredentials) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(c),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}, MinConnectTimeout: connectWithin}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: silentAfter, Timeout: silentWithin}))
}

func (l *lines) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, c := range l.open {
		errs = append(errs, c.Close())
	}
	l.open = nil
	return errors.Join(errs...)
}

// ask has the machine's driver answer. An awayError where it did not.
func ask[Q, A any](ctx context.Context, r *Router, node volume.NodeID, q Q, f call[Q, A]) (none A, _ error) {
	if node == beyond {
		return f(csi.NewControllerClient(inProcess{r.Beyond}), ctx, q)
	}
	conn, err := r.lines.to(ctx, node)
	if err != nil {
		return none, err
	}
	var trailer metadata.MD
	a, err := f(csi.NewControllerClient(conn), ctx, q, grpc.Trailer(&trailer))
	if err == nil || len(trailer.Get(answeredKey)) > 0 || ctx.Err() != nil {
		return a, err
	}
	s := status.Convert(err)
	if s.Code() == codes.Unavailable || s.Code() == codes.Canceled { // canceled: the line was closed, since the machine has another address
		return none, &awayError{errors.New(s.Message())}
	}
	return none, answer(s.Code(), "node %s: %s", node, s.Message())
}
