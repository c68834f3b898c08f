package distributed

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

const blockSize = 4096

// unique is of this run: the attach-detach controller remembers names.
var unique = "-" + strconv.FormatInt(time.Now().Unix()%1e6, 36)

// use is a volume that a pod on a node uses: the test is kubelet and writer.
type use struct {
	*plant
	id      volume.ID
	on      *ghost
	open    volume.Attachment
	device  engine.Device
	written int // blocks that the engine has acknowledged
}

// attachment is what the tests look at of a VolumeAttachment.
type attachment struct {
	Metadata struct {
		Name              string
		Annotations       map[string]string
		Finalizers        []string
		DeletionTimestamp *time.Time
	}
	Spec struct {
		Attacher, NodeName string
		Source             struct{ PersistentVolumeName string }
	}
	Status struct {
		Attached           bool
		AttachmentMetadata map[string]string
		DetachError        *struct{ Message string }
	}
}

const attachmentsPath = "/apis/storage.k8s.io/v1/volumeattachments"

func (a attachment) path() string { return attachmentsPath + "/" + a.Metadata.Name }

// use makes a volume and has it attached to the node, staged, and written to.
func (p *plant) use(name string, on *ghost) *use {
	p.Helper()
	u := &use{plant: p, id: volume.ID(name + unique), on: on}
	p.make(string(u.id))
	u.run(on)
	u.stage()
	for range 8 {
		u.mustWrite()
	}
	return u
}

// make provisions the volume by CSI, and binds a claim to it.
func (p *plant) make(name string) {
	p.Helper()
	made, err := p.driver.CreateVolume(p.Context(), &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: int64(16 * volume.MiB)},
		VolumeCapabilities: []*csi.VolumeCapability{{
			AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		}},
	})
	if err != nil {
		p.Fatal(err)
	}
	volumes, claims := "/api/v1/persistentvolumes", "/api/v1/namespaces/"+space+"/persistentvolumeclaims"
	what := obj{"accessModes": []string{"ReadWriteOnce"}, "volumeMode": "Block", "storageClassName": ""}
	pv, pvc := obj{"capacity": obj{"storage": "16Mi"}, "persistentVolumeReclaimPolicy": "Retain",
		"csi": obj{"driver": driverName, "volumeHandle": made.GetVolume().GetVolumeId()}, "claimRef": obj{"namespace": space, "name": name}},
		obj{"volumeName": name, "resources": obj{"requests": obj{"storage": "16Mi"}}}
	for k, v := range what {
		pv[k], pvc[k] = v, v
	}
	p.Cleanup(func() { p.api.gone(claims + "/" + name); p.api.gone(volumes + "/" + name) })
	p.api.do(p.T, http.MethodPost, volumes, obj{"metadata": obj{"name": name}, "spec": pv}, nil)
	p.api.do(p.T, http.MethodPost, claims, obj{"metadata": obj{"name": name}, "spec": pvc}, nil)
}

func (u *use) podPath(on *ghost) string {
	return "/api/v1/namespaces/" + space + "/pods/" + string(u.id) + "-" + on.name
}

// run makes a pod on the node, for which the attach-detach controller attaches the volume.
func (u *use) run(on *ghost) {
	u.Helper()
	u.Cleanup(func() { u.end(on) })
	path := u.podPath(on)
	u.api.do(u.T, http.MethodPost, path[:strings.LastIndex(path, "/")], obj{
		"metadata": obj{"name": path[strings.LastIndex(path, "/")+1:]},
		"spec": obj{
			"nodeName": on.name, "tolerations": []obj{{"operator": "Exists"}},
			"containers": []obj{{"name": "writer", "image": "lab.local/pause", "volumeDevices": []obj{{"name": "data", "devicePath": "/dev/data"}}}},
			"volumes":    []obj{{"name": "data", "persistentVolumeClaim": obj{"claimName": string(u.id)}}},
		},
	}, nil)
}

// end takes the volume off the node, as orderly as the test has left it: the attach-detach controller remembers for minutes what was torn away.
func (u *use) end(on *ghost) {
	on.silent.Store(false)
	ctx := context.Background()
	if _, staged, _ := on.agent.Entry(u.id); staged {
		if err := errors.Join(on.agent.RemoveTarget(ctx, u.id, "/pod"), on.agent.Unstage(ctx, u.id, "/staging")); err != nil {
			u.Logf("cleaning up %s on %s: %v", u.id, on.name, err)
		}
	}
	_ = u.api.try(http.MethodPatch, on.path()+"/status", obj{"status": obj{"volumesInUse": nil}}, nil)
	u.api.gone(u.podPath(on))
	for end := time.Now().Add(10 * time.Second); u.gone(on)() != nil && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
	}
	for _, a := range u.attachments() {
		if a.Spec.NodeName == on.name {
			u.api.gone(a.path())
		}
	}
}

// attachments are those of the volume. An API server that does not answer has none.
func (u *use) attachments() (out []attachment) {
	var all struct{ Items []attachment }
	_ = u.api.try(http.MethodGet, attachmentsPath, nil, &all)
	for _, a := range all.Items {
		if a.Spec.Attacher == driverName && a.Spec.Source.PersistentVolumeName == string(u.id) {
			attachments.Store(a.Metadata.Name, true)
			out = append(out, a)
		}
	}
	return out
}

// attached waits until the volume is attached to the node.
func (u *use) attached(on *ghost) (found attachment) {
	u.Helper()
	eventually(u.T, "attached to "+on.name, func() error {
		for _, a := range u.attachments() {
			if found = a; a.Spec.NodeName == on.name && a.Status.Attached && a.Metadata.DeletionTimestamp == nil {
				return nil
			}
		}
		return fmt.Errorf("attachments: %+v", u.attachments())
	})
	return found
}

// gone fails while there is a VolumeAttachment to the node.
func (u *use) gone(on *ghost) func() error {
	return func() error {
		var all obj
		if err := u.api.try(http.MethodGet, attachmentsPath, nil, &all); err != nil {
			return err
		}
		for _, a := range u.attachments() {
			if a.Spec.NodeName == on.name {
				return fmt.Errorf("%+v", a)
			}
		}
		return nil
	}
}

// stage does what the driver does at NodeStageVolume and NodePublishVolume.
func (u *use) stage() {
	u.Helper()
	a := u.attached(u.on)
	epoch := must(strconv.ParseUint(a.Status.AttachmentMetadata["belay.storage/epoch"], 10, 64))
	u.open = volume.Attachment{Volume: u.id, Node: volume.NodeID(u.on.name), Epoch: volume.Epoch(epoch)}
	ctx, agent := u.Context(), u.on.agent
	err := agent.BeginStage(ctx, detach.Entry{Attachment: u.open, Staging: "/staging", Access: detach.Block, Boot: "boot"})
	if err == nil {
		u.device, err = u.mem.On(u.open.Node).Attach(ctx, u.open)
	}
	if err == nil {
		err = agent.FinishStage(ctx, u.id, u.device.Path)
	}
	if err == nil {
		err = agent.AddTarget(ctx, u.id, detach.Target{Path: "/pod"})
	}
	if err != nil {
		u.Fatal(err)
	}
}

// unstage does what the driver does at NodeUnpublishVolume and NodeUnstageVolume.
func (u *use) unstage() {
	u.Helper()
	ctx := context.WithoutCancel(u.Context())
	if err := errors.Join(u.on.agent.RemoveTarget(ctx, u.id, "/pod"), u.on.agent.Unstage(ctx, u.id, "/staging")); err != nil {
		u.Fatal(err)
	}
}

func content(n int) []byte {
	sum := sha256.Sum256([]byte{byte(n), byte(n >> 8)})
	return bytes.Repeat(sum[:], blockSize/len(sum))
}

// write writes the next block. What the engine acknowledges is on every replica.
func (u *use) write() error {
	err := u.mem.Write(u.id, u.device.Writer, int64(u.written)*blockSize, content(u.written))
	if err == nil {
		u.written++
	}
	return err
}

func (u *use) mustWrite() {
	u.Helper()
	if err := u.write(); err != nil {
		u.Fatalf("the writer on %s, which nobody may have fenced: %v", u.on.name, err)
	}
}

// unfenced fails where the writer cannot write or a receipt is in force.
func (u *use) unfenced() error {
	if all := u.receipts(); len(all) > 0 {
		return fmt.Errorf("there is a receipt: %+v", all)
	}
	return u.write()
}

// shutOut fails the test where the writer can still write.
func (u *use) shutOut() {
	u.Helper()
	if err := u.mem.Write(u.id, u.device.Writer, 0, content(999)); !errors.Is(err, engine.ErrStaleEpoch) {
		u.Errorf("the fenced writer writes: %v", err)
	}
}

// moves has the volume attached to the other node, where everything acknowledged must be.
func (u *use) moves(to *ghost) {
	u.Helper()
	u.on = to
	u.stage()
	for n := range u.written {
		got := make([]byte, blockSize)
		if err := u.mem.Read(u.id, u.device.Writer, int64(n)*blockSize, got); err != nil || !bytes.Equal(got, content(n)) {
			u.Fatalf("block %d of %d on %s is not what was written: %v", n, u.written, to.name, err)
		}
	}
	u.mustWrite()
}

// killPod deletes the pod by force: without a kubelet nobody else would.
func (u *use) killPod() {
	u.Helper()
	u.api.do(u.T, http.MethodDelete, u.podPath(u.on), obj{"gracePeriodSeconds": 0}, nil)
}

// inUse has the node's kubelet say that it has the volume mounted, and then nothing more.
func (u *use) inUse() {
	u.Helper()
	u.api.do(u.T, http.MethodPatch, u.on.path()+"/status", obj{"status": obj{"volumesInUse": []string{"kubernetes.io/csi/" + driverName + "^" + string(u.id)}}}, nil)
}

// receipts are those in force; each must be good, and their chain whole.
func (u *use) receipts() (out []receipt.Receipt) {
	raws, err := u.mem.Receipts(context.Background(), u.id)
	if breaks := u.book.VerifyChain(raws); err != nil || len(breaks) > 0 {
		u.Errorf("receipts: %v %+v", err, breaks)
	}
	for _, raw := range raws {
		out = append(out, must(u.book.Verify(raw)))
	}
	return out
}

// has fails the test unless the volume has receipts of the kinds, in order, and waits for them.
func (u *use) has(kinds ...receipt.Kind) []receipt.Receipt {
	u.Helper()
	var all []receipt.Receipt
	eventually(u.T, "receipts", func() error {
		all = u.receipts()
		var got []receipt.Kind
		for _, r := range all {
			got = append(got, r.Kind)
		}
		if fmt.Sprint(got) != fmt.Sprint(kinds) {
			return fmt.Errorf("%v, want %v", got, kinds)
		}
		return nil
	})
	return all
}

// refused waits until the attacher was refused with all the words.
func (u *use) refused(words ...string) {
	u.Helper()
	eventually(u.T, "refused", func() error {
		all := u.attachments()
		for _, a := range all {
			if e := a.Status.DetachError; e != nil && containsAll(e.Message, words) {
				return nil
			}
		}
		return fmt.Errorf("no detachError with %q: %+v", words, all)
	})
}

// told waits for an Event of the reason, with the word, on the claim, the node, and an attachment of the volume.
func (u *use) told(reason, word string) {
	u.Helper()
	eventually(u.T, "Events "+reason, func() error {
		var all struct {
			Items []struct {
				Reason, Message string
				InvolvedObject  struct{ Kind, Name string }
			}
		}
		if err := u.api.try(http.MethodGet, "/api/v1/events?fieldSelector="+url.QueryEscape("reason="+reason), nil, &all); err != nil {
			return err
		}
		missing := map[string]bool{"PersistentVolumeClaim": true, "Node": true, "VolumeAttachment": true}
		for _, e := range all.Items {
			_, ours := attachments.Load(e.InvolvedObject.Name)
			if strings.Contains(e.Message, word) && (ours || e.InvolvedObject.Name == string(u.id) || e.InvolvedObject.Name == u.on.name) {
				delete(missing, e.InvolvedObject.Kind)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("not on %v", missing)
		}
		return nil
	})
}

func containsAll(s string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}
