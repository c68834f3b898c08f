package driver

import (
	"context"
	"fmt"
	"path"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/belay-storage/belay/pkg/volume"
)

// beyond is the name, among those of machines, of what answers for volumes that live on no one machine. It comes first in lists.
const beyond volume.NodeID = ""

// inProcess has a controller service of this process answer a client's calls. Errors come through as they are.
type inProcess struct{ csi.ControllerServer }

// Invoke implements grpc.ClientConnInterface.
func (p inProcess) Invoke(ctx context.Context, method string, request, reply any, _ ...grpc.CallOption) error {
	for _, m := range csi.Controller_ServiceDesc.Methods {
		if m.MethodName == path.Base(method) {
			return p.call(ctx, m, request, reply)
		}
	}
	return fmt.Errorf("%s: no such method of the controller service", method)
}

func (p inProcess) call(ctx context.Context, m grpc.MethodDesc, request, reply any) error {
	answered, err := m.Handler(p.ControllerServer, ctx, func(into any) error { return copyMessage(into, request) }, nil)
	if err != nil {
		return err
	}
	return copyMessage(reply, answered)
}

func copyMessage(into, from any) error {
	to, ok := into.(proto.Message)
	m, also := from.(proto.Message)
	if !ok || !also {
		return fmt.Errorf("%T, %T: not messages", into, from)
	}
	proto.Merge(to, m)
	return nil
}

// NewStream implements grpc.ClientConnInterface.
func (inProcess) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, fmt.Errorf("the controller service has no streams")
}
