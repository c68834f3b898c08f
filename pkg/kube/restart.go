package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// restartTries is how often a lost device is looked into while something does not answer.
const restartTries = 60

// Restarts asks the owner of a workload whose device was lost to restart it, where the StorageClass says "restartOnDeviceLoss: true", by deleting the
// pod with the pod's own grace period; and tells what to do where not. See DESIGN.md.
type Restarts struct {
	cluster  *Cluster
	reporter *Reporter
	peers    Peers
	queue    *queue

	mu    sync.Mutex
	known map[string]admin.Notice // what the queue's names stand for: the newest, until it is looked into
}

// NewRestarts returns a controller.
func NewRestarts(k *Cluster, r *Reporter, p Peers) *Restarts {
	s := &Restarts{cluster: k, reporter: r, peers: p, known: map[string]admin.Notice{}}
	s.queue = newQueue("lost device", k.Log, s.look)
	return s
}

// Run works until ctx ends.
func (s *Restarts) Run(ctx context.Context) { s.queue.run(ctx, 4) }

// Lost notes that a device was lost.
func (s *Restarts) Lost(n admin.Notice) {
	name := fmt.Sprintf("%s on %s, epoch %d", n.Volume, n.Node, n.Epoch)
	s.mu.Lock()
	s.known[name] = n
	s.mu.Unlock()
	s.queue.Add(name)
}

func (s *Restarts) look(ctx context.Context, name string) error {
	n, ok := s.take(name)
	if !ok {
		return nil // the look before had this notice already
	}
	err := s.consider(ctx, n)
	if err != nil && s.queue.NumRequeues(name) < restartTries {
		s.giveBack(name, n)
		return err
	}
	if err != nil {
		s.cluster.Log.Error("lost device is not looked into any more", "volume", n.Volume, "node", n.Node, "error", err)
	}
	return nil
}

// take returns the notice to be looked into. One that comes from now on is another, and looked into after it.
func (s *Restarts) take(name string) (n admin.Notice, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok = s.known[name]
	delete(s.known, name)
	return n, ok
}

// giveBack keeps the notice for the next try, where none has come since.
func (s *Restarts) giveBack(name string, n admin.Notice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, newer := s.known[name]; !newer {
		s.known[name] = n
	}
}

// loss is a device that is lost now.
type loss struct {
	notice     admin.Notice
	writer     volume.Epoch // whose device it was: each staging has another
	about      about
	volume     *corev1.PersistentVolume
	attachment *storagev1.VolumeAttachment
}

// consider asks the pods to restart, or tells what to do.
func (s *Restarts) consider(ctx context.Context, n admin.Notice) error {
	l, ok, err := s.find(ctx, n)
	if err != nil || !ok {
		return err
	}
	wanted, err := s.optedIn(ctx, l.volume)
	if err != nil {
		return err
	}
	if !wanted {
		s.tellLost(l, "delete the pods that use it, so that it is staged again (a StorageClass with "+ParameterRestart+`: "true" has Belay ask for that)`)
		return nil
	}
	return s.restart(ctx, l)
}

// find sees whether the device is still lost, by the node's own word now, and where in the cluster it is used. All is read live.
func (s *Restarts) find(ctx context.Context, n admin.Notice) (loss, bool, error) {
	l := loss{notice: n, about: s.cluster.aboutVolume(n.Volume, n.Node)}
	w, err := s.why(ctx, n)
	switch {
	case errors.Is(err, engine.ErrNotFound):
		return l, false, nil
	case err != nil:
		return l, false, err
	case !lostNow(w.Report, n):
		return l, false, nil
	}
	l.writer = w.Volume.Writer
	cached, ok := s.cluster.volume(l.about.handle)
	if !ok {
		return l, false, nil
	}
	if l.volume, err = s.cluster.API.volumes().get(ctx, cached.Name); err != nil {
		return l, false, unlessGone(err)
	}
	for _, a := range s.cluster.attached(cached, n.Node) {
		l.attachment, err = s.cluster.API.attachments().get(ctx, a.Name)
		return l, err == nil && l.attachment.DeletionTimestamp == nil && l.volume.Spec.ClaimRef != nil, unlessGone(err)
	}
	return l, false, nil
}

func (s *Restarts) why(ctx context.Context, n admin.Notice) (admin.Why, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	return s.peers(n.Node).Why(ctx, string(n.Volume))
}

func unlessGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func lostNow(r detach.Report, n admin.Notice) bool {
	a := r.Volume.Attachment
	return r.Node != nil && r.Node.Device == detach.DeviceLost && a != nil && a.Node == n.Node && (n.Epoch == 0 || a.Epoch == n.Epoch)
}

// optedIn reads the volume's own parameter, or that of its StorageClass.
func (s *Restarts) optedIn(ctx context.Context, pv *corev1.PersistentVolume) (bool, error) {
	if value, set := pv.Spec.CSI.VolumeAttributes[ParameterRestart]; set || pv.Spec.StorageClassName == "" {
		return value == "true", nil
	}
	class, err := s.cluster.API.classes().get(ctx, pv.Spec.StorageClassName)
	if err != nil {
		return false, unlessGone(err)
	}
	return class.Parameters[ParameterRestart] == "true", nil
}

// restart writes down which pods are to be asked, and asks them. What is written down already for this device is not added to.
func (s *Restarts) restart(ctx context.Context, l loss) error {
	plan, err := parseRestart(l.attachment.Annotations[AnnotationRestart])
	if err != nil || plan.writer < l.writer {
		if plan, err = s.plan(ctx, l); err != nil {
			return s.unlessForbidden(l, err)
		}
		if len(plan.pods) == 0 {
			return nil
		}
		if err := s.cluster.annotate(ctx, l.attachment, map[string]any{AnnotationRestart: plan.String()}); err != nil {
			return err
		}
	}
	if plan.writer != l.writer {
		return nil
	}
	var errs []error
	for _, p := range plan.pods {
		errs = append(errs, s.ask(ctx, l, p))
	}
	return s.unlessForbidden(l, errors.Join(errs...))
}

// unlessForbidden turns the missing right to delete pods into an Event: an installation may withhold it.
func (s *Restarts) unlessForbidden(l loss, err error) error {
	if !apierrors.IsForbidden(err) {
		return err
	}
	s.tellLost(l, "delete the pods that use it, so that it is staged again (Belay's service account may not)")
	return nil
}

// plan finds the pods that may be asked, and tells of those that may not.
func (s *Restarts) plan(ctx context.Context, l loss) (restart, error) {
	plan := restart{writer: l.writer}
	claim := l.volume.Spec.ClaimRef
	found, err := s.cluster.API.pods(claim.Namespace).find(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + string(l.notice.Node)})
	if err != nil {
		return plan, err
	}
	var refused []string
	for _, p := range found.(*corev1.PodList).Items {
		if !uses(&p, claim.Name) || over(&p) {
			continue
		}
		if why := unaskable(&p); why != "" {
			refused = append(refused, fmt.Sprintf("pod %s/%s is not asked: %s; restart it yourself", p.Namespace, p.Name, why))
			continue
		}
		plan.pods = append(plan.pods, podName{p.Name, string(p.UID)})
	}
	switch {
	case len(refused) > 0:
		s.tellLost(l, strings.Join(refused, "; "))
	case len(plan.pods) == 0:
		s.tellLost(l, "no pod uses it now; it is staged again for the next one")
	}
	return plan, nil
}

func (s *Restarts) tellLost(l loss, next string) {
	s.reporter.tell(l.about, corev1.EventTypeWarning, ReasonDeviceLost, l.notice.Message+"; next: "+next)
}

// ask deletes the pod, if it is still the one that was written down and does not end already.
func (s *Restarts) ask(ctx context.Context, l loss, name podName) error {
	namespace := l.volume.Spec.ClaimRef.Namespace
	p, err := s.cluster.API.pods(namespace).get(ctx, name.name)
	if err != nil || string(p.UID) != name.uid || over(p) || unaskable(p) != "" {
		return unlessGone(err)
	}
	if err := s.cluster.API.end(ctx, p); err != nil {
		return unlessGone(err)
	}
	a := l.about
	a.also = []*corev1.ObjectReference{{Kind: "Pod", APIVersion: "v1", Namespace: p.Namespace, Name: p.Name, UID: p.UID}}
	s.reporter.tell(a, corev1.EventTypeNormal, ReasonRestart, fmt.Sprintf("the device of pod %s/%s was lost (%s): the pod was deleted with its own grace period, so that %s replaces it",
		p.Namespace, p.Name, l.notice.Message, owner(p)))
	return nil
}
