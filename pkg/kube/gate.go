package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// Gate are the events of a gate in this process, told as those of the nodes' gates are.
func (r *Reporter) Gate() detach.Events {
	return detach.Events{
		DetachRefused: func(id volume.ID, node volume.NodeID, cause error) {
			how, reason := corev1.EventTypeWarning, ReasonRefused
			if errors.Is(cause, detach.ErrInProgress) || errors.Is(cause, engine.ErrBusy) {
				how, reason = corev1.EventTypeNormal, ReasonWaiting
			}
			r.tell(r.aboutVolume(id, node), how, reason, cause.Error())
		},
		ReceiptWritten: func(a volume.Attachment, w receipt.Receipt) {
			how := receiptNews(w.Kind)
			r.tell(r.aboutVolume(a.Volume, a.Node), how.kind, how.reason, receiptText(w))
		},
		Quarantined: func(a volume.Attachment, cause string) {
			r.tell(r.aboutVolume(a.Volume, a.Node), corev1.EventTypeWarning, ReasonQuarantined, cause)
		},
	}
}

// receiptNews says how a receipt of the kind is told.
func receiptNews(k receipt.Kind) told {
	switch k {
	case receipt.Forced:
		return news[admin.Forced]
	case receipt.Fenced:
		return news[admin.Fenced]
	}
	return news[admin.Finished]
}

func receiptText(r receipt.Receipt) string {
	text := fmt.Sprintf("%s receipt of epoch %d: %s", r.Kind, r.Attachment.Epoch, cmp.Or(r.Reason, "nobody can write any more"))
	if r.Actor != "" {
		text += " (by " + r.Actor + ")"
	}
	return text
}

// Forgotten implements driver.Config.Forgotten: it says whether the API server has no VolumeAttachment of the volume to the node, so that nobody will ask for
// its detach. An error where that cannot be told.
func (k *Cluster) Forgotten(ctx context.Context, a volume.Attachment) (bool, error) {
	if !k.read() {
		return false, ErrNotRead
	}
	pv, ok := k.volume(k.aboutVolume(a.Volume, a.Node).handle)
	if !ok {
		return false, fmt.Errorf("volume %s: the cluster has no PersistentVolume of it", a.Volume)
	}
	found, err := k.API.attachments().find(ctx, metav1.ListOptions{})
	if err != nil {
		return false, err
	}
	all, ok := found.(*storagev1.VolumeAttachmentList)
	if !ok {
		return false, fmt.Errorf("%T is no list of attachments", found)
	}
	for _, v := range all.Items {
		if name := v.Spec.Source.PersistentVolumeName; v.Spec.Attacher == k.Driver && v.Spec.NodeName == string(a.Node) && (name == nil || *name == pv.Name) {
			return false, nil
		}
	}
	return true, nil
}
