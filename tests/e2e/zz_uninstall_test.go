package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// TestUninstall: what the manifests have made is gone when they are deleted, and nothing of Belay runs or is mounted on any node. Volumes' data stays in the
// stores. It is the last test.
func TestUninstall(t *testing.T) {
	c := &cluster{T: t, space: "default"}
	c.eventually("no volume is left by the tests before", func() error {
		var all []struct{ ID string }
		if err := c.belay(&all, "volumes"); err != nil {
			return err
		}
		if len(all) > 0 {
			return fmt.Errorf("%d volumes, the first %s", len(all), all[0].ID)
		}
		return nil
	})
	c.lab("kubectl", "delete", "-k", filepath.Join(checkout, "tests/e2e/manifests"), "--timeout="+patience.String())
	for _, kind := range []string{"namespaces", "csidrivers", "storageclasses", "clusterroles", "clusterrolebindings", "validatingadmissionpolicies", "validatingadmissionpolicybindings", "volumeattachments"} {
		for name := range strings.FieldsSeq(c.kubectl("get", kind, "-o", "name")) {
			if strings.Contains(name, "belay") {
				t.Errorf("%s is left", name)
			}
		}
	}
	for _, node := range []string{"n1", "n2"} {
		c.eventually("nothing is left on "+node, func() error {
			out, err := c.onNode(node, "pgrep -a belay; awk '"+mountsOfBelay+"' /proc/self/mountinfo")
			if err == nil && strings.TrimSpace(out) != "" {
				err = errors.New(out)
			}
			return err
		})
	}
}

// mountsOfBelay prints where a filesystem is mounted whose place, kind or source tells of Belay. What part of which filesystem it is (the fourth field) is not
// asked: the checkout that the machine's own directories lie in may have Belay's name.
const mountsOfBelay = `{ place = $5; sub(/^.* - /, ""); if (place " " $1 " " $2 ~ /belay/) print place, $1, $2 }`
