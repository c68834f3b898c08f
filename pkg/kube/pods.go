package kube

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/belay-storage/belay/pkg/volume"
)

// end deletes the pod as it was read, with its own grace period. It is the only delete of this project: see guard.go.
func (a *API) end(ctx context.Context, p *corev1.Pod) error {
	return a.core.Delete().Namespace(p.Namespace).Resource("pods").Name(p.Name).Timeout(requestTimeout).
		Body(&metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID, ResourceVersion: &p.ResourceVersion}}).Do(ctx).Error()
}

// uses says whether the pod uses the claim, by name or as its generic ephemeral volume.
func uses(p *corev1.Pod, claim string) bool {
	return slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
		return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim || v.Ephemeral != nil && p.Name+"-"+v.Name == claim
	})
}

// over says that the pod ends or has ended.
func over(p *corev1.Pod) bool {
	return p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// unaskable says why the pod must not be deleted, "" where it may.
func unaskable(p *corev1.Pod) string {
	switch o := metav1.GetControllerOf(p); {
	case o == nil:
		return "nothing would replace it"
	case o.Kind == "Node":
		return "it is a static pod of its kubelet"
	case p.Spec.TerminationGracePeriodSeconds != nil && *p.Spec.TerminationGracePeriodSeconds == 0:
		return "its grace period is 0, so that deleting it would be forced"
	}
	return ""
}

func owner(p *corev1.Pod) string {
	if o := metav1.GetControllerOf(p); o != nil {
		return o.Kind + " " + o.Name
	}
	return "its owner"
}

// restart is the value of AnnotationRestart: which pods were asked to restart when the device of which writer was lost.
type restart struct {
	writer volume.Epoch
	pods   []podName
}

type podName struct{ name, uid string }

func (r restart) String() string {
	var pods []string
	for _, p := range r.pods {
		pods = append(pods, p.name+"/"+p.uid)
	}
	return fmt.Sprintf("epoch=%d; pods=%s", r.writer, strings.Join(pods, ","))
}

func parseRestart(s string) (r restart, err error) {
	epoch, pods, _ := strings.Cut(strings.TrimPrefix(s, "epoch="), "; pods=")
	n, err := strconv.ParseUint(epoch, 10, 64)
	if err != nil {
		return r, err
	}
	r.writer = volume.Epoch(n)
	for _, p := range strings.Split(pods, ",") {
		if name, uid, ok := strings.Cut(p, "/"); ok {
			r.pods = append(r.pods, podName{name, uid})
		}
	}
	return r, nil
}
