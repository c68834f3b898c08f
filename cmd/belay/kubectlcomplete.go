package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// completeKubectlWithin is longer than for a socket of this machine: kubectl starts, and asks the API server what it serves.
const completeKubectlWithin = 3 * time.Second

// names asks kubectl for names, as `-o name` prints them; those of objects without their kind.
func (k *plugin) names(cmd *cobra.Command, args ...string) []string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), completeKubectlWithin)
	defer cancel()
	raw, err := k.read(ctx, "", args...)
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.FieldsSeq(string(raw)) {
		if _, name, ok := strings.Cut(line, "/"); ok && args[0] == "get" {
			line = name
		}
		out = append(out, line)
	}
	return out
}

// completeVolume offers pvc/NAME of the namespace, or pv/NAME once that is begun.
func (k *plugin) completeVolume(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return k.complete(cmd, args, begun, "pvc")
}

// completeFenced offers node/NAME too.
func (k *plugin) completeFenced(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return k.complete(cmd, args, begun, "node", "pvc")
}

// complete offers the objects of the kind that was begun, or of those that are likely.
func (k *plugin) complete(cmd *cobra.Command, args []string, begun string, likely ...string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if kind, _, slash := strings.Cut(begun, "/"); slash {
		likely = []string{kind}
	}
	var out []cobra.Completion
	for _, as := range likely {
		ask := append([]string{"get", as, "-o", "name"}, k.inNamespace()...)
		if kinds[as] == "" {
			continue
		}
		for _, name := range k.names(cmd, ask...) {
			if offer := as + "/" + name; strings.HasPrefix(offer, begun) {
				out = append(out, offer)
			}
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeFlag offers what kubectl prints.
func (k *plugin) completeFlag(ask ...string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, begun string) (out []cobra.Completion, _ cobra.ShellCompDirective) {
		for _, name := range k.names(cmd, ask...) {
			if strings.HasPrefix(name, begun) {
				out = append(out, name)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
