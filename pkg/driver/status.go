package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mount"
	"github.com/belay-storage/belay/pkg/volume"
)

// meanings maps errors to codes. The first that fits is taken, hence the order: what needs a person comes before what
// heals, and "not yet" before "no".
var meanings = []struct {
	err  error
	code codes.Code
}{
	{engine.ErrQuarantined, codes.DataLoss},
	{detach.ErrDataLoss, codes.DataLoss},
	{detach.ErrWriteback, codes.DataLoss},
	{detach.ErrInProgress, codes.Aborted},
	{detach.ErrNodeSilent, codes.Aborted},
	{engine.ErrBusy, codes.Aborted},
	{detach.ErrHeld, codes.FailedPrecondition},
	{detach.ErrOverride, codes.FailedPrecondition},
	{detach.ErrJournal, codes.Internal},
	{engine.ErrUnavailable, codes.Unavailable},
	{engine.ErrAttached, codes.FailedPrecondition},
	{engine.ErrNotStopped, codes.FailedPrecondition},
	{engine.ErrNotSealed, codes.FailedPrecondition},
	{engine.ErrStaleEpoch, codes.FailedPrecondition},
	{engine.ErrDeviceLost, codes.FailedPrecondition},
	{engine.ErrNotNeeded, codes.FailedPrecondition},
	{engine.ErrNotFound, codes.NotFound},
	{engine.ErrExists, codes.AlreadyExists},
	{engine.ErrOutOfRange, codes.OutOfRange},
	{engine.ErrNoSpace, codes.ResourceExhausted},
	{engine.ErrInvalid, codes.InvalidArgument},
	{engine.ErrUnsupported, codes.Unimplemented},
	{volume.ErrInvalid, codes.InvalidArgument},
	{mount.ErrBusy, codes.FailedPrecondition},
	{mount.ErrNotEmpty, codes.FailedPrecondition},
	{mount.ErrDamaged, codes.FailedPrecondition},
	{mount.ErrUnsupported, codes.InvalidArgument},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
}

// codeOf says what an error means to the orchestrator.
func codeOf(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	if s, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return s.GRPCStatus().Code()
	}
	if own, ok := errors.AsType[*coded](err); ok {
		return own.code
	}
	for _, m := range meanings {
		if errors.Is(err, m.err) {
			return m.code
		}
	}
	return codes.Internal
}

// toStatus is the error as it is answered: code and message, never details (CSI, "Error Scheme").
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, already := err.(interface{ GRPCStatus() *status.Status }); already {
		return err
	}
	return status.Error(codeOf(err), short(err.Error()))
}

// messageMax is how long an answer may be. Kubernetes keeps an error with a VolumeAttachment only where it has at most 1024 bytes, those included that
// gRPC puts before it; of a longer one nobody would be told.
const messageMax = 900

// short leaves words out of the middle: what it is about comes first, and what to do next last.
func short(s string) string {
	if len(s) <= messageMax {
		return s
	}
	const gap = " … "
	tail := ""
	if at := strings.LastIndex(s, "; next: "); at >= 0 && len(s)-at < messageMax/2 {
		tail = s[at:]
	}
	return strings.ToValidUTF8(s[:messageMax-len(gap)-len(tail)], "") + gap + tail
}

// coded is an error with a code of its own. Not a gRPC status, whose text would repeat the code wherever it is wrapped.
type coded struct {
	code codes.Code
	error
}

func (e *coded) Unwrap() error { return e.error }

// answer is an error that is answered with the code.
func answer(c codes.Code, format string, args ...any) error {
	return &coded{code: c, error: fmt.Errorf(format, args...)}
}

func invalid(format string, args ...any) error { return answer(codes.InvalidArgument, format, args...) }

func refused(format string, args ...any) error {
	return answer(codes.FailedPrecondition, format, args...)
}
