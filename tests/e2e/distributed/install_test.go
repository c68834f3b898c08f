package distributed

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
)

// install makes what the tests share: the rights of the project's own manifests, their policy of overrides, and the driver's object.
func install() error {
	text := fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %[1]s}\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: belay-memory-controller, namespace: %[1]s}\n", space)
	for _, file := range []string{"base/controller-rbac.yaml", "base/policies.yaml", "base/users.yaml", "base/csidriver.yaml", "components/fence-expired-leases/fence-expired-leases.yaml"} {
		manifest, err := os.ReadFile(filepath.Join(checkout, "deploy/kubernetes", file))
		if err != nil {
			return err
		}
		text += "---\n" + besides(string(manifest))
	}
	text += fmt.Sprintf("---\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: belay-memory-ann}\n"+
		"roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: belay-memory-override}\nsubjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: %s}]\n", ann)
	if _, err := labRun(text, "kubectl", "apply", "-f", "-"); err != nil {
		return err
	}
	_, err := labRun("", "kubectl", "wait", "--for=create", "serviceaccount/default", "-n", space, "--timeout=60s") // pods need it
	return err
}

var belayNames = regexp.MustCompile(`\bbelay-(system|controller|provisioner|attacher|resizer|override|exec|viewer|operator|fence-expired-leases)\b`)

// besides renames what the manifests install, so that it does not meet what is installed already.
func besides(manifest string) string {
	manifest = strings.ReplaceAll(manifest, "csi.belay.storage", driverName)
	return belayNames.ReplaceAllString(manifest, "belay-memory-$1")
}

// attacherFlags are those of the manifests, without what is of a pod.
func attacherFlags() (flags []string, err error) {
	manifest, err := os.ReadFile(filepath.Join(checkout, "deploy/kubernetes/base/controller.yaml"))
	if err != nil {
		return nil, err
	}
	_, rest, found := strings.Cut(string(manifest), "- name: csi-attacher")
	rest, _, _ = strings.Cut(rest, "- name: csi-resizer")
	for line := range strings.Lines(rest) {
		flag, is := strings.CutPrefix(strings.TrimSpace(line), "- --")
		name, _, _ := strings.Cut(flag, "=")
		if is && name != "csi-address" && name != "http-endpoint" && name != "leader-election" {
			flags = append(flags, "--"+flag)
		}
	}
	if !found || len(flags) == 0 {
		err = errors.New("the manifests have no flags for the attacher")
	}
	return flags, err
}

// attachments are the names of the VolumeAttachments that the tests have seen.
var attachments sync.Map

// audit fails where a VolumeAttachment of the tests was deleted by Belay or its attacher, and where the log does not know of those that others deleted.
func audit() error {
	text, err := labRun("", "log", "audit")
	if err != nil {
		return err
	}
	others := 0
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		var e struct {
			Verb      string
			User      struct{ Username string }
			ObjectRef struct{ Resource, Name string }
		}
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.ObjectRef.Resource != "volumeattachments" || !strings.HasPrefix(e.Verb, "delete") {
			continue
		}
		if strings.HasPrefix(e.User.Username, "system:serviceaccount:"+space) {
			return fmt.Errorf("VolumeAttachment %s was deleted by %s", e.ObjectRef.Name, e.User.Username)
		}
		if _, ours := attachments.Load(e.ObjectRef.Name); ours && strings.HasSuffix(e.User.Username, ":attachdetach-controller") {
			others++
		}
	}
	seen := 0
	attachments.Range(func(any, any) bool { seen++; return true })
	if seen > 0 && others == 0 {
		return errors.New("it has no deletion by the attach-detach controller: it cannot show who deletes")
	}
	return nil
}
