package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/kube"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// vaJSON is a VolumeAttachment; annotations are keys and values in turn.
func vaJSON(name, attacher, node, pv string, annotations ...string) string {
	m := map[string]string{}
	for i := 0; i < len(annotations); i += 2 {
		m[annotations[i]] = annotations[i+1]
	}
	raw, _ := json.Marshal(m)
	return fmt.Sprintf(`{"apiVersion":"storage.k8s.io/v1","kind":"VolumeAttachment","metadata":{"name":%q,"annotations":%s},
		"spec":{"attacher":%q,"nodeName":%q,"source":{"persistentVolumeName":%q}},"status":{"attached":true}}`, name, raw, attacher, node, pv)
}

const (
	burnt    = "volume=pvc-1; epoch=7; by=ann; reason=it burns; badly"
	annotate = "annotate volumeattachments.storage.k8s.io csi-1 belay.storage/override=" + burnt + " belay.storage/override-result-"
	look     = "get volumeattachments.storage.k8s.io csi-1 --ignore-not-found -o json"
)

// burning is the shop with both volumes attached by a VolumeAttachment each, and one of another driver.
func burning(t *testing.T) *cluster {
	c := shop(t)
	c.on(askWhoami, reply{Out: `{"kind":"SelfSubjectReview","status":{"userInfo":{"username":"ann","groups":["ops"]}}}`})
	c.on(askAttachments, reply{Out: list(vaJSON("csi-1", "csi.belay.storage", "n1", "pv-1"), vaJSON("csi-2", "csi.belay.storage", "n2", "pv-2"), vaJSON("csi-3", "ebs.csi.aws.com", "n1", "ebs"))})
	c.on(annotate, reply{Out: "volumeattachment.storage.k8s.io/csi-1 annotated\n"})
	return c
}

// fenceBurning fences node n1 without being asked.
func (c *cluster) fenceBurning(more ...string) (code int, out, errOut string) {
	return c.run(append([]string{"fence", "node/n1", "--reason", "it burns; badly", "--yes"}, more...)...)
}

// TestFenceWritesOverrides: exactly the annotation of the node's volumes, and the outcome that the controller writes.
func TestFenceWritesOverrides(t *testing.T) {
	c := burning(t)
	c.on(look, reply{Out: vaJSON("csi-1", "csi.belay.storage", "n1", "pv-1", kube.AnnotationOverride, burnt)})
	c.on(look, reply{Err: "Unable to connect to the server\n", Code: 1})
	c.on(look, reply{Out: vaJSON("csi-1", "csi.belay.storage", "n1", "pv-1", kube.AnnotationOverrideResult, "done: forced receipt of today")})
	code, out, errOut := c.fenceBurning()
	if code != exitOK || !strings.Contains(out, "pvc-1@n1  shop/data  n1    7      done     forced receipt of today") || strings.Contains(out+errOut, "pvc-2") {
		t.Errorf("exit %d\n%s\n%s", code, out, errOut)
	}
	for _, says := range []string{"EPOCH  STATE", "Healthy  2/2      fenced", "The writer of 1 volume is shut out", "not synced may be gone", "By ann: it burns; badly"} {
		if !strings.Contains(errOut, says) {
			t.Errorf("%q is not shown before:\n%s", says, errOut)
		}
	}
	c.asked(askAttachments, askPVs, askVolumes, askWhoami, annotate, look, look, look)
	over, err := kube.ParseOverride(burnt)
	if err != nil || over.Volume != "pvc-1" || over.Epoch != 7 || over.Actor != "ann" || over.Reason != "it burns; badly" {
		t.Errorf("%+v, %v", over, err)
	}
}

// TestFenceOneVolume: however it is named.
func TestFenceOneVolume(t *testing.T) {
	for arg, asks := range map[string][]string{
		"pvc/data": {"get pvc data --namespace=shop -o json", "get pv pv-1 -o json"},
		"pv/pv-1":  {"get pv pv-1 -o json"},
		"pvc-1@n1": {},
		"pvc-1":    {"get pvc pvc-1 --namespace=shop --ignore-not-found -o json"},
	} {
		c := burning(t)
		c.on("get pvc pvc-1 --namespace=shop --ignore-not-found -o json", reply{})
		c.on(look, reply{Out: vaJSON("csi-1", "csi.belay.storage", "n1", "pv-1", kube.AnnotationOverrideResult, "done: yes")})
		code, out, errOut := c.run("fence", arg, "-n", "shop", "--reason", "it burns; badly", "--yes", "-o", "json")
		var got []fenced
		if err := json.Unmarshal([]byte(out), &got); code != exitOK || err != nil || len(got) != 1 {
			t.Fatalf("%s: exit %d, %v\n%s%s", arg, code, err, out, errOut)
		}
		want := fenced{Volume: "pvc-1@n1", Claim: "shop/data", Node: "n1", Attachment: "csi-1", Epoch: 7, Outcome: fenceDone, Text: "yes"}
		if g := got[0]; g.Volume != want.Volume || g.Claim != want.Claim || g.Node != want.Node || g.Attachment != want.Attachment || g.Epoch != want.Epoch || g.Outcome != want.Outcome || g.Text != want.Text {
			t.Errorf("%s: %+v", arg, g)
		}
		c.asked(append(asks, askAttachments, askPVs, askVolumes, askWhoami, annotate, look)...)
	}
}

// TestFenceGuessesNoVolume: a name that volumes of two machines have is asked back.
func TestFenceGuessesNoVolume(t *testing.T) {
	c := burning(t)
	c.on("get pvc pvc-1 --namespace=shop --ignore-not-found -o json", reply{})
	c.replies[askVolumes] = []reply{{Out: volumesJSON(t, attached("pvc-1", "n1", 7), attached("pvc-1", "n2", 3))}}
	code, _, errOut := c.run("fence", "pvc-1", "-n", "shop", "--reason", "it burns; badly", "--yes")
	if code != exitUsage || !strings.Contains(errOut, "pvc-1@n1, pvc-1@n2") {
		t.Errorf("exit %d\n%s", code, errOut)
	}
	c.asked("get pvc pvc-1 --namespace=shop --ignore-not-found -o json", askAttachments, askPVs, askVolumes)
}

// TestFenceOutcomes: what becomes of an override, and the exit code.
func TestFenceOutcomes(t *testing.T) {
	va := func(annotations ...string) reply {
		return reply{Out: vaJSON("csi-1", "csi.belay.storage", "n1", "pv-1", annotations...)}
	}
	forced := receipt.Receipt{Attachment: volume.Attachment{Volume: "pvc-1", Node: "n1", Epoch: 7}, Kind: receipt.Forced, Actor: "ann", Reason: "it burns; badly"}
	others, clean, older := forced, forced, forced
	others.Actor, clean.Kind, older.Attachment.Epoch = "bob", receipt.Clean, 6
	for name, tc := range map[string]struct {
		look     reply
		receipts []receipt.Receipt
		more     string
		code     int
		says     string
	}{
		"rejected":           {look: va(kube.AnnotationOverrideResult, "rejected: stale epoch"), code: exitFailed, says: "rejected  stale epoch"},
		"open":               {look: va(kube.AnnotationOverride, burnt), more: "--wait=1ms", code: exitFailed, says: "open     not carried out within 1ms; the override stays set and is tried on"},
		"API server is away": {look: reply{Err: "refused\n", Code: 1}, more: "--wait=1ms", code: exitFailed, says: "refused; the override stays set"},
		"taken back":         {look: va(), code: exitFailed, says: "failed   somebody has taken the override back"},
		"another":            {look: va(kube.AnnotationOverride, "volume=pvc-1; epoch=7; by=bob; reason=x"), code: exitFailed, says: "somebody has set another override meanwhile: volume=pvc-1; epoch=7; by=bob"},
		"unknown word":       {look: va(kube.AnnotationOverrideResult, "perhaps"), code: exitFailed, says: "not understood: perhaps"},
		"gone, by us":        {receipts: []receipt.Receipt{older, forced}, code: exitOK, says: "done     forced receipt in force"},
		"gone, by another":   {receipts: []receipt.Receipt{others}, code: exitOK, says: "detached  let go of before the override was carried out, with a receipt that is forced, by bob"},
		"gone, cleanly":      {receipts: []receipt.Receipt{clean}, code: exitOK, says: "with a receipt that is clean"},
		"gone, no receipt":   {receipts: []receipt.Receipt{older}, more: "--wait=1ms", code: exitFailed, says: "there is no receipt of epoch 7"},
	} {
		t.Run(name, func(t *testing.T) {
			c := burning(t)
			c.on(look, tc.look)
			c.on(asking("receipts", "--output=json pvc-1@n1"), reply{Out: receiptsJSON(t, tc.receipts...)})
			code, out, errOut := c.fenceBurning(strings.Fields(tc.more)...)
			if code != tc.code || !strings.Contains(out, tc.says) || (code != exitOK) != strings.Contains(errOut, "not every volume was fenced") {
				t.Errorf("exit %d\n%s\n%s", code, out, errOut)
			}
		})
	}
}

func receiptsJSON(t *testing.T, all ...receipt.Receipt) string {
	t.Helper()
	r := admin.Receipts{Volume: "pvc-1"}
	for _, one := range all {
		r.Entries = append(r.Entries, admin.ReceiptEntry{Receipt: one})
	}
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestFenceDoesNotWait where it is told not to: an override that is set is what was asked for.
func TestFenceDoesNotWait(t *testing.T) {
	c := burning(t)
	code, out, _ := c.fenceBurning("--wait=0")
	if code != exitOK || !strings.Contains(out, "open") {
		t.Errorf("exit %d\n%s", code, out)
	}
	c.asked(askAttachments, askPVs, askVolumes, askWhoami, annotate)
}

// TestFenceIsForbidden: the API server's word is passed on, with what would help.
func TestFenceIsForbidden(t *testing.T) {
	c := burning(t)
	delete(c.replies, annotate)
	c.on(annotate, reply{Code: 1, Err: `Error from server (Forbidden): volumeattachments.storage.k8s.io "csi-1" is forbidden: ValidatingAdmissionPolicy 'belay-override' denied request: ann may not override` + "\n"})
	code, out, errOut := c.fenceBurning()
	if code != exitFailed || !strings.Contains(out, "failed") || !strings.Contains(out, "ann may not override; this needs the ClusterRole belay-override") {
		t.Errorf("exit %d\n%s\n%s", code, out, errOut)
	}
	c.asked(askAttachments, askPVs, askVolumes, askWhoami, annotate)
}

// TestFenceIsAgain: an override that is set already is waited for, another one is left alone.
func TestFenceIsAgain(t *testing.T) {
	for pending, says := range map[string]string{burnt: "done", "volume=pvc-1; epoch=7; by=bob; reason=x": "another override waits to be carried out"} {
		c := burning(t)
		delete(c.replies, askAttachments)
		c.on(askAttachments, reply{Out: list(vaJSON("csi-1", "csi.belay.storage", "n1", "pv-1", kube.AnnotationOverride, pending))})
		c.on(look, reply{Out: vaJSON("csi-1", "csi.belay.storage", "n1", "pv-1", kube.AnnotationOverrideResult, "done: yes")})
		_, out, errOut := c.fenceBurning()
		if !strings.Contains(out, says) {
			t.Errorf("%s: %s%s", pending, out, errOut)
		}
		for _, call := range c.calls() {
			if strings.HasPrefix(call, "annotate") {
				t.Errorf("set again: %s", call)
			}
		}
	}
}

// TestFencePlan: what is left alone, and why.
func TestFencePlan(t *testing.T) {
	published := detached("pub", "n1")
	published.Attachment = &volume.Attachment{Volume: "pub", Node: "n1", Epoch: 2}
	s := situation{driver: "d", pvs: map[string]persistentVolume{}, listed: []admin.Volume{
		attached("pvc-1", "n1", 7), detached("idle", "n1"), published, attached("moved", "n2", 4), attached("orphan", "n1", 5),
	}}
	for _, id := range []string{"pvc-1@n1", "idle@n1", "pub@n1", "moved@n2", "away@n9", "orphan@n1"} {
		var p persistentVolume
		must(t, json.Unmarshal([]byte(pvJSON("pv-"+id, "d", id, id)), &p))
		s.pvs[p.Metadata.Name] = p
		if id == "orphan@n1" {
			continue
		}
		var a volumeAttachment
		must(t, json.Unmarshal([]byte(vaJSON("va-"+id, "d", "n1", "pv-"+id)), &a))
		s.attachments = append(s.attachments, a)
	}
	var a volumeAttachment
	must(t, json.Unmarshal([]byte(vaJSON("va-lost", "d", "n1", "no-pv")), &a))
	s.attachments = append(s.attachments, a)
	var got []string
	for _, f := range s.plan(func(_ string, node volume.NodeID) bool { return node == "n1" }) {
		got = append(got, fmt.Sprintf("%s %s %d %.30s", f.Volume, f.Outcome, f.Epoch, f.Text))
	}
	want := []string{
		"away@n9 failed 0 no machine that answers has it",
		"idle@n1 skipped 0 detached: there is no writer t",
		"moved@n2 skipped 0 it is attached to node n2 by n",
		"no-pv failed 0 no machine that answers has it",
		"orphan@n1 failed 5 it has no VolumeAttachment to ",
		"pub@n1 skipped 0 published: there is no writer ",
		"pvc-1@n1  7 ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("planned\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestFenceNothing: a node without volumes is most likely a wrong name; volumes without a writer are none.
func TestFenceNothing(t *testing.T) {
	c := burning(t)
	code, _, errOut := c.run("fence", "node/n9", "--reason", "x", "--yes")
	if code != exitFailed || !strings.Contains(errOut, "node/n9 has nothing attached") {
		t.Errorf("exit %d\n%s", code, errOut)
	}
	c = burning(t)
	c.replies[askVolumes] = []reply{{Out: volumesJSON(t, detached("pvc-1", "n1"))}}
	code, out, errOut := c.run("fence", "node/n1", "--reason", "x") // not asked: there is nothing to agree to
	if code != exitOK || !strings.Contains(out, "skipped  detached: there is no writer") {
		t.Errorf("exit %d\n%s\n%s", code, out, errOut)
	}
	c.asked(askAttachments, askPVs, askVolumes, askWhoami)
}

// TestFenceOfAMachineThatIsAway: without its word there is no epoch to name.
func TestFenceOfAMachineThatIsAway(t *testing.T) {
	c := burning(t)
	c.replies[askVolumes] = []reply{{Out: volumesJSON(t, attached("pvc-2", "n2", 3)), Err: "belay: node n1 does not answer: refused; its volumes are not listed\n", Code: 1}}
	code, out, errOut := c.fenceBurning()
	if code != exitFailed || !strings.Contains(out, "failed   no machine that answers has it") || !strings.Contains(errOut, "node n1 does not answer") {
		t.Errorf("exit %d\n%s\n%s", code, out, errOut)
	}
	c.asked(askAttachments, askPVs, askVolumes, askWhoami)
}

// TestFenceCannotBeWritten: what the annotation cannot hold is refused before anything is asked or done.
func TestFenceCannotBeWritten(t *testing.T) {
	for _, reason := range []string{"two\nlines", strings.Repeat("x", 2000)} {
		c := burning(t)
		code, _, errOut := c.run("fence", "node/n1", "--reason", reason, "--yes")
		if code != exitUsage || !strings.Contains(errOut, "--reason") {
			t.Errorf("exit %d\n%.200s", code, errOut)
		}
		c.asked(askAttachments, askPVs, askVolumes, askWhoami)
	}
	c := burning(t)
	c.replies[askWhoami] = []reply{{Out: `{"kind":"SelfSubjectReview","status":{"userInfo":{"username":"a; reason=b"}}}`}}
	if code, _, errOut := c.fenceBurning(); code != exitUsage || !strings.Contains(errOut, `user name "a; reason=b" cannot be written`) {
		t.Errorf("exit %d\n%s", code, errOut)
	}
	c = burning(t)
	c.replies[askWhoami] = []reply{{Out: `{"kind":"SelfSubjectReview","status":{"userInfo":{}}}`}}
	if code, _, errOut := c.fenceBurning(); code != exitFailed || !strings.Contains(errOut, "does not say who you are") {
		t.Errorf("exit %d\n%s", code, errOut)
	}
}

// TestFenceAsks: a person types the node's name, or nothing is done; where there is nobody, --yes must say it.
func TestFenceAsks(t *testing.T) {
	for typed, agreed := range map[string]bool{"n1\n": true, "yes\n": false, "\n": false} {
		c := burning(t)
		c.on(look, reply{Out: vaJSON("csi-1", "csi.belay.storage", "n1", "pv-1", kube.AnnotationOverrideResult, "done: yes")})
		code, out, errOut := c.runWith(terminalThatTypes(t, typed), "fence", "node/n1", "--reason", "it burns; badly")
		if (code == exitOK) != agreed || !strings.Contains(errOut, "Type n1 to go on: ") || !agreed && !strings.Contains(errOut, "nothing was changed") {
			t.Errorf("%q: exit %d\n%s\n%s", typed, code, out, errOut)
		}
		if n := len(c.calls()); (n == 6) != agreed {
			t.Errorf("%q: %q", typed, c.calls())
		}
	}
	c := burning(t)
	code, _, errOut := c.run("fence", "node/n1", "--reason", "x")
	if code != exitUsage || !strings.Contains(errOut, "give --yes") || !strings.Contains(errOut, "pvc-1@n1") {
		t.Errorf("exit %d\n%s", code, errOut)
	}
	c.asked(askAttachments, askPVs, askVolumes, askWhoami)
}

// TestKubectlSalvageAtATerminal lets the person answer belay's own question.
func TestKubectlSalvageAtATerminal(t *testing.T) {
	for more, flags := range map[string][2]string{"": {" --stdin --tty", ""}, "--yes": {"", "--yes=true "}} {
		c := newCluster(t)
		c.on(askWhoami, reply{Out: `{"kind":"SelfSubjectReview","status":{"userInfo":{"username":"ann"}}}`})
		ask := strings.Replace(asking("salvage", "--by=ann --from=a --reason=x "+flags[1]+"pvc-1@n1"), "exec", "exec"+flags[0], 1)
		c.on(ask, reply{Out: "salvaged\n"})
		code, out, errOut := c.runWith(terminalThatTypes(t, ""), strings.Fields("salvage pvc-1@n1 --from a --reason x "+more)...)
		if code != exitOK || out != "salvaged\n" {
			t.Errorf("exit %d\n%s%s", code, out, errOut)
		}
		c.asked(askWhoami, ask)
	}
}

// terminalThatTypes is a terminal at which somebody has typed.
func terminalThatTypes(t *testing.T, typed string) *os.File {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here: ", err)
	}
	t.Cleanup(func() { _ = person.Close() })
	must(t, unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	must(t, err)
	in, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { _ = in.Close() })
	_, err = person.WriteString(typed)
	must(t, err)
	return in
}
