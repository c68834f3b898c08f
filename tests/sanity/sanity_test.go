// Package sanity runs the CSI conformance suite (csi-test) against the real program with real mounts.
//
// It needs root. BELAY_BIN names the program to test; without it, it is built. Afterwards nothing may be left: no
// volume, mount, device or process.
package sanity

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
)

const mib = 1 << 20

// undeclared are the reasons for which the suite may skip a test, with the capability that is not declared yet.
var undeclared = map[string]string{
	"CreateSnapshot not supported":         "CREATE_DELETE_SNAPSHOT",
	"DeleteSnapshot not supported":         "CREATE_DELETE_SNAPSHOT",
	"Snapshot not supported":               "CREATE_DELETE_SNAPSHOT",
	"ListSnapshots not supported":          "LIST_SNAPSHOTS",
	"GetSnapshot not supported":            "GET_SNAPSHOT",
	"Volume Cloning not supported":         "CLONE_VOLUME",
	"ControllerModifyVolume not supported": "MODIFY_VOLUME",
	"Modify volume not supported":          "MODIFY_VOLUME",
	"Modify Volume not supported":          "MODIFY_VOLUME",
	"GroupControllerService not supported": "GROUP_CONTROLLER_SERVICE",
	"VolumeGroupSnapshots not supported":   "GROUP_CONTROLLER_SERVICE",
	"NodeGetStorageHealth not supported":   "GET_STORAGE_HEALTH",
}

func TestSanity(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts real filesystems")
	}
	p, c := start(t), startCluster(t)
	report := runSuite(t, p, c)
	checkSkipped(t, report)
	p.checkEmpty()
	c.checkEmpty()
	c.stopController()
	p.stop()
	c.stop()
}

// runSuite runs the suite for both access types, against a single machine and through the controller of a cluster. Ginkgo runs once a process, hence all in
// one run.
func runSuite(t *testing.T, p *program, c *cluster) (report ginkgo.Report) {
	for _, access := range []string{"mount", "block"} {
		one, many := p.config(access), c.config(access)
		many.ControllerAddress = c.endpoint
		ginkgo.Describe(access, func() { sanity.GinkgoTest(&one) })
		ginkgo.Describe("cluster "+access, func() { sanity.GinkgoTest(&many) })
	}
	ginkgo.ReportAfterSuite("skips", func(r ginkgo.Report) { report = r })
	gomega.RegisterFailHandler(ginkgo.Fail)
	suite, reporter := ginkgo.GinkgoConfiguration()
	reporter.Succinct = true
	ginkgo.RunSpecs(t, "CSI conformance", suite, reporter)
	return report
}

func (p *program) config(access string) sanity.TestConfig {
	c := sanity.NewTestConfig()
	c.Address = p.endpoint
	c.TargetPath, c.StagingPath = p.path(access+"-target"), p.path(access+"-staging")
	// Small: one test attaches as many volumes as the node takes, and volumes are promised only what the stores have.
	c.TestVolumeSize, c.TestVolumeExpandSize = 64*mib, 96*mib
	c.TestVolumeAccessType = access
	c.TestVolumeParameters = map[string]string{"replicas": "3"}
	c.TestNodeVolumeAttachLimit = true
	return c
}

// checkSkipped fails for every test that was skipped for another reason than a capability that is not declared, and for
// a suite that hardly ran.
func checkSkipped(t *testing.T, r ginkgo.Report) {
	t.Helper()
	ran, skipped := 0, map[string]int{}
	for _, s := range r.SpecReports {
		switch {
		case s.LeafNodeType != types.NodeTypeIt:
		case s.State == types.SpecStatePassed:
			ran++
		case s.State == types.SpecStateSkipped:
			skipped[s.Failure.Message]++
		case s.State == types.SpecStatePending: // csi-test's own decision
			t.Logf("pending: %s", s.FullText())
		}
	}
	wanting := map[string]int{}
	for reason, n := range skipped {
		if undeclared[reason] == "" {
			t.Errorf("%d tests skipped: %s", n, reason)
		}
		wanting[undeclared[reason]] += n
	}
	var reasons []string
	for _, capability := range slices.Sorted(maps.Keys(wanting)) {
		reasons = append(reasons, fmt.Sprintf("%d for want of %s", wanting[capability], capability))
	}
	t.Logf("%d passed; skipped: %s", ran, strings.Join(reasons, ", "))
	const least = 200
	if ran < least {
		t.Errorf("only %d tests ran, want at least %d", ran, least)
	}
}
