package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
)

// TestKubectlNamesVolumes: each way to name a volume ends in the handle that the controller knows.
func TestKubectlNamesVolumes(t *testing.T) {
	pvc, pv := "get pvc data --namespace=shop -o json", "get pv pv-1 -o json"
	ask := asking("why", "pvc-1@n1")
	for args, calls := range map[string][]string{
		"pvc/data -n shop":                   {pvc, pv, ask},
		"PersistentVolumeClaim/data -n shop": {pvc, pv, ask},
		"pv/pv-1":                            {pv, ask},
		"persistentvolumes/pv-1 -n shop":     {pv, ask},
		"pvc-1@n1":                           {ask},
		"data --namespace shop":              {"get pvc data --namespace=shop --ignore-not-found -o json", pv, ask},
		"vol-7":                              {"get pvc vol-7 --ignore-not-found -o json", asking("why", "vol-7")},
		"pvc-1@n1 -o json --belay-namespace tools": {"exec --namespace=tools deploy/belay-controller --container=belay -- /usr/bin/belay why --socket=" + defaultControllerAdmin + " --output=json pvc-1@n1"},
		"pv/pv-1 --context prod --kubeconfig /k --cluster c --user u --as ann --as-group a --as-group b --request-timeout 5s": {
			"--kubeconfig=/k --context=prod --cluster=c --user=u --as=ann --as-group=a --as-group=b --request-timeout=5s " + pv,
			"--kubeconfig=/k --context=prod --cluster=c --user=u --as=ann --as-group=a --as-group=b --request-timeout=5s " + ask,
		},
	} {
		t.Run(args, func(t *testing.T) {
			c := shop(t)
			c.on("get pvc data --namespace=shop --ignore-not-found -o json", c.replies[pvc][0])
			c.on("get pvc vol-7 --ignore-not-found -o json", reply{})
			if strings.HasSuffix(calls[0], pv) { // with flags before it too
				c.on(calls[0], c.replies[pv][0])
			}
			c.on(calls[len(calls)-1], reply{Out: "held by nobody\n"})
			code, out, errOut := c.run(append([]string{"why"}, strings.Fields(args)...)...)
			if code != exitOK || !strings.HasSuffix(out, "held by nobody\n") {
				t.Errorf("exit %d, %q, %s", code, out, errOut)
			}
			c.asked(calls...)
		})
	}
}

func TestKubectlVolumeErrors(t *testing.T) {
	const pvc, pv = "get pvc data -o json", "get pv pv-1 -o json"
	notFound := func(what string) reply {
		return reply{Err: "Error from server (NotFound): " + what + " not found\n", Code: 1}
	}
	for name, tc := range map[string]struct {
		pvc, pv reply
		says    []string
	}{
		"no claim": {pvc: notFound(`persistentvolumeclaims "data"`), says: []string{`kubectl get pvc data -o json: Error from server (NotFound): persistentvolumeclaims "data" not found`}},
		"pending": {pvc: reply{Out: claimJSON("shop", "data", "Pending", "")}, says: []string{
			"claim shop/data is Pending", "has no volume yet", "kubectl describe pvc data --namespace=shop",
		}},
		"lost":           {pvc: reply{Out: claimJSON("shop", "data", "Lost", "pv-1")}, pv: notFound(`persistentvolumes "pv-1"`), says: []string{"claim shop/data is Lost", `"pv-1" not found`}},
		"another driver": {pvc: reply{Out: claimJSON("shop", "data", "Bound", "pv-1")}, pv: reply{Out: pvJSON("pv-1", "ebs.csi.aws.com", "vol-1", "data")}, says: []string{"PersistentVolume pv-1 is of driver ebs.csi.aws.com, not of csi.belay.storage", "--drivername"}},
		"no driver":      {pvc: reply{Out: claimJSON("shop", "data", "Bound", "pv-1")}, pv: reply{Out: `{"kind":"PersistentVolume","spec":{"hostPath":{"path":"/x"}}}`}, says: []string{"of no CSI driver"}},
		"forbidden": {pvc: reply{Err: `Error from server (Forbidden): persistentvolumeclaims "data" is forbidden: User "ann" cannot get resource` + "\n", Code: 1}, says: []string{
			`User "ann" cannot get`, "this needs the ClusterRole belay-viewer",
		}},
		"no JSON": {pvc: reply{Out: "frob"}, says: []string{"what `kubectl get pvc data` prints is not understood"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.on(pvc, tc.pvc)
			c.on(pv, tc.pv)
			code, out, errOut := c.run("why", "pvc/data")
			if code != exitFailed || out != "" {
				t.Errorf("exit %d, %q", code, out)
			}
			for _, says := range tc.says {
				if !strings.Contains(errOut, says) {
					t.Errorf("%q is not in %q", says, errOut)
				}
			}
			if slices.ContainsFunc(c.calls(), func(s string) bool { return strings.HasPrefix(s, "exec") }) {
				t.Errorf("asked all the same: %q", c.calls())
			}
		})
	}
}

// TestKubectlPassesOn: flags, output and exit codes of the verbs that belay itself has answer in the pod.
func TestKubectlPassesOn(t *testing.T) {
	f, book := newFake(t)
	f.found.Findings = []engine.Finding{{Replica: "r1", Offset: 4096, Length: 4096, Cause: "rot"}}
	socket := f.serve(t, book)
	for _, tc := range []struct {
		args, ask string
		code      int
		out, err  string
	}{
		{"receipts pvc-1@n1", asking("receipts", "pvc-1@n1"), exitOK, "1 receipt in one chain", ""},
		{"receipts pv/pv-1", asking("receipts", "pvc-1"), exitOK, "1 receipt in one chain", ""},
		{"receipts pv/pv-1 -o json", asking("receipts", "--output=json pvc-1"), exitOK, `"name": "data of Ann"`, ""},
		{"why pv/pv-1", asking("why", "pvc-1"), exitOK, "nothing to do", ""},
		{"history pv/pv-1 --last 3", asking("history", "--last=3 pvc-1"), exitOK, "nothing is kept", ""},
		{"history pv/pv-1 --last=-1", asking("history", "--last=-1 pvc-1"), exitUsage, "", "--last -1"},
		{"verify pv/pv-1", asking("verify", "pvc-1"), exitDiffers, "WRONG replica r1", "verify pvc-1: 1 GiB of 2 GiB"},
		{"salvage pv/pv-1 --read", asking("salvage", "--read=true pvc-1"), exitFailed, "", "not supported"},
		{"salvage pv/pv-1 --yes", asking("salvage", "--yes=true pvc-1"), exitUsage, "", "--from"},
		{"upgrade pv/pv-1 --to /good --pace 3s", asking("upgrade", "--pace=3s --to=/good pvc-1"), exitOK, "upgraded from v1 to v2", "1 of 1"},
		{"upgrade pv/pv-1 --to /bad", asking("upgrade", "--to=/bad pvc-1"), exitFailed, "NOT upgraded", "not every volume"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			c := newCluster(t)
			c.on("get pv pv-1 -o json", reply{Out: pvJSON("pv-1", "csi.belay.storage", "pvc-1", "data")})
			c.on(tc.ask, reply{Socket: socket})
			code, out, errOut := c.run(strings.Fields(tc.args)...)
			if code != tc.code || !strings.Contains(out, tc.out) || !strings.Contains(errOut, tc.err) {
				t.Errorf("exit %d\n%s%s", code, out, errOut)
			}
			if calls := c.calls(); calls[len(calls)-1] != tc.ask {
				t.Errorf("asked %q", calls)
			}
		})
	}
}

// TestKubectlSalvageIsInSomebodysName: what is decided is decided by the operator, not by the controller's pod.
func TestKubectlSalvageIsInSomebodysName(t *testing.T) {
	m, socket := lostMajority(t)
	store := string(m.Replicas()[0])
	c := newCluster(t)
	ask := asking("salvage", "--by=ann --from="+store+" --reason=burnt --yes=true pvc-1")
	c.on("get pv pv-1 -o json", reply{Out: pvJSON("pv-1", "csi.belay.storage", "pvc-1", "data")})
	c.on(askWhoami, reply{Out: `{"kind":"SelfSubjectReview","status":{"userInfo":{"username":"ann"}}}`})
	c.on(ask, reply{Socket: socket})
	code, out, errOut := c.run("salvage", "pv/pv-1", "--from", store, "--reason", "burnt", "--yes")
	if code != exitOK || !strings.Contains(out, "burnt (by ann, by way of ") {
		t.Errorf("exit %d\n%s%s", code, out, errOut)
	}
	c.asked("get pv pv-1 -o json", askWhoami, ask)
}

func TestKubectlSaysWhatIsMissing(t *testing.T) {
	const forbidden = `Error from server (Forbidden): pods "belay-controller-7d" is forbidden: User "ann" cannot create resource "pods/exec"` + "\n"
	for args, tc := range map[string]struct{ ask, err, says string }{
		"why a@n1":                   {asking("why", "a@n1"), forbidden, "this needs the Role belay-viewer of Belay's namespace"},
		"verify a@n1":                {asking("verify", "a@n1"), forbidden, `the right to "exec" on pods.belay.storage`},
		"upgrade a@n1 --to /b":       {asking("upgrade", "--to=/b a@n1"), forbidden, "this needs the ClusterRole belay-operator"},
		"volumes":                    {askVolumes, forbidden, "this needs the Role belay-viewer"},
		"receipts a@n1":              {asking("receipts", "a@n1"), `Error from server (NotFound): deployments.apps "belay-controller" not found`, "not in namespace belay-system; --belay-namespace"},
		"history a@n1 --as somebody": {"--as=somebody " + asking("history", "a@n1"), forbidden, "this needs the Role belay-viewer"},
	} {
		c := newCluster(t)
		c.on(tc.ask, reply{Err: tc.err, Code: 1})
		code, out, errOut := c.run(strings.Fields(args)...)
		if code != exitFailed || out != "" || !strings.HasPrefix(errOut, tc.err) || !strings.Contains(errOut, tc.says) {
			t.Errorf("%s: exit %d, %q, %q", args, code, out, errOut)
		}
	}
}

func TestKubectlVolumes(t *testing.T) {
	c := shop(t)
	code, out, errOut := c.run("volumes")
	lines := strings.Split(out, "\n")
	if code != exitOK || errOut != "" || len(lines) != 4 || strings.Join(strings.Fields(lines[0]), " ") != "ID CLAIM NAME SIZE STATE NODE USE IN SYNC ENGINE RECEIPT" ||
		strings.Join(strings.Fields(lines[1]), " ") != "pvc-1@n1 shop/data pvc-1 1 GiB Healthy n1 attached 2/2 - -" {
		t.Errorf("exit %d\n%s%s", code, out, errOut)
	}
	c.asked(askVolumes, askPVs)
}

func TestKubectlVolumesJSON(t *testing.T) {
	c := shop(t)
	code, out, errOut := c.run("volumes", "-o", "json")
	var got, sent []map[string]any
	if err := json.Unmarshal([]byte(out), &got); code != exitOK || err != nil || len(got) != 2 {
		t.Fatalf("exit %d, %v\n%s%s", code, err, out, errOut)
	}
	if got[0]["claim"] != "shop/data" || got[1]["claim"] != "shop/logs" {
		t.Errorf("claims %v and %v", got[0]["claim"], got[1]["claim"])
	}
	delete(got[0], "claim")
	delete(got[1], "claim")
	again, _ := json.Marshal(got)
	if err := json.Unmarshal([]byte(c.replies[askVolumes][0].Out), &sent); err != nil {
		t.Fatal(err)
	}
	if was, _ := json.Marshal(sent); string(again) != string(was) {
		t.Errorf("what the controller listed is changed:\n%s\n%s", again, was)
	}
}

// TestKubectlVolumesPartly: what is known is shown, and what is missing is said.
func TestKubectlVolumesPartly(t *testing.T) {
	c := newCluster(t)
	c.on(askVolumes, reply{Out: volumesJSON(t, detached("pvc-1", "n1")), Err: "belay: node n2 does not answer: refused; its volumes are not listed\n", Code: 1})
	c.on(askPVs, reply{Err: "Error from server (Forbidden): persistentvolumes is forbidden\n", Code: 1})
	code, out, errOut := c.run("volumes")
	if code != exitFailed || !strings.Contains(out, "pvc-1@n1  -      pvc-1") || !strings.Contains(errOut, "node n2 does not answer") ||
		!strings.Contains(errOut, "claims are not shown") || !strings.Contains(errOut, "ClusterRole belay-viewer") {
		t.Errorf("exit %d\n%s%s", code, out, errOut)
	}
	none := newCluster(t)
	none.on(askVolumes, reply{Out: "[]"})
	none.on(askPVs, reply{Out: list()})
	if code, out, errOut = none.run("volumes"); code != exitOK || out != "no volumes\n" {
		t.Errorf("exit %d\n%s%s", code, out, errOut)
	}
	if code, out, errOut = none.run("volumes", "-o", "json"); code != exitOK || out != "[]\n" {
		t.Errorf("exit %d\n%s%s", code, out, errOut)
	}
}

// TestKubectlUpgradesToTheControllersVersion where no program is named.
func TestKubectlUpgradesToTheControllersVersion(t *testing.T) {
	for args, words := range map[string]string{
		"pvc/data -n shop":            "--to=/var/lib/belay/bin/belay-v8 pvc-1@n1",
		"--all --keep-going":          "--all=true --keep-going=true --to=/var/lib/belay/bin/belay-v8",
		"--node n1 --pace 1s -o json": "--node=n1 --output=json --pace=1s --to=/var/lib/belay/bin/belay-v8",
	} {
		c := shop(t)
		c.on(askVersion, reply{Out: `{"version":"v8","go":"go1"}`})
		c.on(asking("upgrade", words), reply{Out: "upgraded\n", Err: "1 of 1\n"})
		code, out, errOut := c.run(append([]string{"upgrade"}, strings.Fields(args)...)...)
		if code != exitOK || out != "upgraded\n" || errOut != "1 of 1\n" {
			t.Errorf("%s: exit %d, %q, %q", args, code, out, errOut)
		}
	}
	c := newCluster(t)
	c.on(askVersion, reply{Out: "frob"})
	if code, _, errOut := c.run("upgrade", "--all"); code != exitFailed || !strings.Contains(errOut, "version is not understood") {
		t.Errorf("exit %d, %s", code, errOut)
	}
	c.asked(askVersion)
}

func TestKubectlVersion(t *testing.T) {
	c := newCluster(t)
	c.on(askVersion, reply{Out: `{"version":"v8","go":"go1"}`})
	c.on(askVersion, reply{Out: `{"version":"v8","go":"go1"}`})
	c.on(askVersion, reply{Err: "Unable to connect to the server\n", Code: 1})
	code, out, _ := c.run("version")
	if code != exitOK || !strings.Contains(out, "kubectl belay "+version) || !strings.Contains(out, "controller: v8 (go1) in namespace belay-system") {
		t.Errorf("exit %d, %s", code, out)
	}
	var v pluginVersions
	if code, out, _ = c.run("version", "-o", "json"); code != exitOK || json.Unmarshal([]byte(out), &v) != nil || v.Controller.Version != "v8" || v.Version != version {
		t.Errorf("exit %d, %s", code, out)
	}
	if code, out, _ = c.run("version"); code != exitOK || !strings.Contains(out, "does not answer: kubectl exec") || !strings.Contains(out, "Unable to connect") {
		t.Errorf("exit %d, %s", code, out)
	}
}

func TestKubectlProgram(t *testing.T) {
	c := newCluster(t)
	c.on(asking("why", "a@n1"), reply{Out: "held\n"})
	other := filepath.Join(t.TempDir(), "kubectl")
	if err := os.Rename(filepath.Join(c.dir, "kubectl"), other); err != nil {
		t.Fatal(err)
	}
	if code, _, errOut := c.run("why", "a@n1"); code != exitFailed || !strings.Contains(errOut, "kubectl must be in PATH, or in $KUBECTL") {
		t.Errorf("exit %d, %s", code, errOut)
	}
	t.Setenv("KUBECTL", other)
	if code, out, errOut := c.run("why", "a@n1"); code != exitOK || out != "held\n" {
		t.Errorf("exit %d, %s%s", code, out, errOut)
	}
}

func TestKubectlCompletes(t *testing.T) {
	c := newCluster(t)
	c.on("get pvc -o name", reply{Out: "persistentvolumeclaim/data\npersistentvolumeclaim/logs\n"})
	c.on("get pvc -o name --namespace=shop", reply{Out: "persistentvolumeclaim/till\n"})
	c.on("get pv -o name", reply{Out: "persistentvolume/pv-1\n"})
	c.on("get node -o name", reply{Out: "node/n1\n"})
	c.on("get nodes -o name", reply{Out: "node/n1\nnode/n2\n"})
	c.on("get namespaces -o name", reply{Out: "namespace/shop\n"})
	c.on("config get-contexts -o name", reply{Out: "arn:aws:eks:x:cluster/prod\n"})
	for args, want := range map[string]string{
		"ver":                      "verify version",
		"why ":                     "pvc/data pvc/logs",
		"why pvc/d":                "pvc/data",
		"why -n shop ":             "pvc/till",
		"why pv/":                  "pv/pv-1",
		"why frob/":                "",
		"why pvc/data ":            "",
		"fence ":                   "node/n1 pvc/data pvc/logs",
		"fence node/":              "node/n1",
		"upgrade --node ":          "n1 n2",
		"volumes -n ":              "shop",
		"volumes --context ":       "arn:aws:eks:x:cluster/prod",
		"volumes -o ":              "text json",
		"salvage pvc/data --from ": "",
	} {
		c.save()
		code, out, errOut := runAs(t, "kubectl_complete-belay", strings.Split(args, " ")...)
		var got []string
		for line := range strings.Lines(out) {
			if word, _, _ := strings.Cut(strings.TrimSpace(line), "\t"); !strings.HasPrefix(word, ":") {
				got = append(got, word)
			}
		}
		if code != exitOK || strings.Join(got, " ") != want || !strings.Contains(out, ":4\n") {
			t.Errorf("%q: exit %d, %q, want %q\n%s", args, code, got, want, errOut)
		}
	}
}

// runAs runs the program under one of its names.
func runAs(t *testing.T, name string, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e strings.Builder
	root, words := called(append([]string{name}, args...))
	code = execute(t.Context(), root, words, strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}
