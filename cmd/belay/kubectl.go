package main

import (
	"cmp"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/belay-storage/belay/pkg/driver"
)

// Names under which this program is a plugin of kubectl, and what kubectl runs to complete the plugin's arguments.
const (
	pluginName    = "kubectl-belay"
	completerName = "kubectl_complete-belay"
)

// Where the plugin has its questions answered: by the controller, which knows the machine of each volume.
const (
	controllerWorkload  = "deploy/belay-controller"
	controllerContainer = "belay"
	controllerProgram   = "/usr/bin/belay"
)

const kubectlLong = `Look at the volumes of Belay in a cluster, and decide for them, by your own kubectl and with your own rights.

It runs kubectl, the one in PATH or in $KUBECTL, and nothing else: what you may not do, it cannot do, and the cluster's audit log tells what you did. Questions are
answered by the controller ("kubectl exec" in ` + controllerWorkload + `), which asks the machine that has the volume.

A VOLUME is named as pvc/NAME (see --namespace), pv/NAME, or by its handle as "kubectl belay volumes" lists it, as pvc-1a2b@n1. A bare NAME without "@" is the claim
of that name where there is one, and otherwise the volume's ID or name.

ClusterRoles: belay-viewer to look (beside the Role belay-viewer of Belay's namespace), belay-operator to upgrade, belay-override to fence.

Completion: put this program into PATH as ` + pluginName + ` and as ` + completerName + `, as a link for instance; the second does what
"kubectl belay __complete ARGS..." does. kubectl's own completion must be on.

Exit codes: 0 done; 1 refused or failed; 2 the command line cannot be understood; 3 verify found differences.`

const kubectlExample = `  kubectl belay volumes
  kubectl belay why pvc/data -n shop                      # what holds this volume, who said what, what to do next
  kubectl belay receipts pvc/data -n shop                 # the signed proof of every finished detach
  kubectl belay verify pvc/data -n shop                   # read everything again and compare with the newest receipt
  kubectl belay fence node/n2 --reason "ticket 4711: machine has burnt down"
  kubectl belay upgrade --node n1`

// plugin is what the verbs of kubectl belay share.
type plugin struct {
	options
	connection pflag.FlagSet // passed on to every kubectl
	namespace  string        // of claims; empty: the kubeconfig's current one
	belay      string        // Belay's own namespace
	driver     string
}

// newKubectlRoot is this program as a plugin of kubectl.
func newKubectlRoot() *cobra.Command {
	k := &plugin{}
	root := &cobra.Command{
		Use: pluginName, Short: "look at the volumes of Belay in a cluster, and decide for them", Long: kubectlLong, Example: kubectlExample,
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl belay"}, SilenceErrors: true, SilenceUsage: true, Version: version,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		// A shell completes kubectl, and kubectl asks this program.
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	k.addConnection(root)
	root.AddGroup(&cobra.Group{ID: "look", Title: "Questions, which change nothing:"}, &cobra.Group{ID: "decide", Title: "Decisions and work:"})
	k.addVerbs(root, "look", k.newVolumes(), k.newWhy(), k.newHistory(), k.newReceipts(), k.newVersion())
	k.addVerbs(root, "decide", k.newVerify(), k.newFence(), k.newSalvage(), k.newUpgrade())
	return root
}

func (k *plugin) addVerbs(root *cobra.Command, group string, verbs ...*cobra.Command) {
	for _, verb := range verbs {
		verb.GroupID = group
		addOutput(verb, &k.options)
		root.AddCommand(verb)
	}
}

// addConnection adds the flags that say which cluster, who asks, and where Belay is.
func (k *plugin) addConnection(root *cobra.Command) {
	k.connection.String("kubeconfig", "", "kubeconfig file, as kubectl has it")
	k.connection.String("context", "", "context of the kubeconfig")
	k.connection.String("cluster", "", "cluster of the kubeconfig")
	k.connection.String("user", "", "user of the kubeconfig")
	k.connection.String("as", "", "user to act as")
	k.connection.StringArray("as-group", nil, "group to act as; several times for several")
	k.connection.String("request-timeout", "", "how long to wait for one answer of the API server, as 10s")
	f := root.PersistentFlags()
	f.AddFlagSet(&k.connection)
	f.StringVarP(&k.namespace, "namespace", "n", "", "namespace of the claim (default: the kubeconfig's current one)")
	f.StringVar(&k.belay, "belay-namespace", defaultNamespace, "namespace of Belay itself")
	f.StringVar(&k.driver, "drivername", driver.Name, "name of the driver in PersistentVolumes")
	_ = root.RegisterFlagCompletionFunc("namespace", k.completeFlag("get", "namespaces", "-o", "name"))
	_ = root.RegisterFlagCompletionFunc("belay-namespace", k.completeFlag("get", "namespaces", "-o", "name"))
	_ = root.RegisterFlagCompletionFunc("context", k.completeFlag("config", "get-contexts", "-o", "name"))
	_ = root.MarkPersistentFlagFilename("kubeconfig")
}

// program is the operator's kubectl.
func (k *plugin) program() string { return cmp.Or(os.Getenv("KUBECTL"), "kubectl") }

// common are the flags that every kubectl gets.
func (k *plugin) common() (out []string) {
	k.connection.VisitAll(func(f *pflag.Flag) {
		if f.Changed { // by the parse of another set: Visit knows of its own only
			out = append(out, flagArgs(f)...)
		}
	})
	return out
}

// flagArgs are the words of a flag that was given.
func flagArgs(f *pflag.Flag) (out []string) {
	list, ok := f.Value.(pflag.SliceValue)
	if !ok {
		return []string{"--" + f.Name + "=" + f.Value.String()}
	}
	for _, v := range list.GetSlice() {
		out = append(out, "--"+f.Name+"="+v)
	}
	return out
}

// inNamespace are the words that say in which namespace a claim is looked for.
func (k *plugin) inNamespace() []string {
	if k.namespace == "" {
		return nil
	}
	return []string{"--namespace=" + k.namespace}
}

// exec is the command line of a verb that the controller's pod answers.
func (k *plugin) exec(verb string, args ...string) []string {
	out := []string{"exec", "--namespace=" + k.belay, controllerWorkload, "--container=" + controllerContainer, "--", controllerProgram, verb, "--socket=" + defaultControllerAdmin}
	return append(out, args...)
}
