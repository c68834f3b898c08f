package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// completeWithin keeps a shell from hanging on a server that does not answer.
const completeWithin = time.Second

// completeVolume offers the names of the volumes that the running server has, and nothing where it does not answer.
func (o *options) completeVolume(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), completeWithin)
	defer cancel()
	all, err := o.client().Volumes(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []cobra.Completion
	for _, v := range all.Volumes {
		if strings.HasPrefix(nameOf(v), begun) {
			out = append(out, cobra.CompletionWithDesc(nameOf(v), v.Size.String()+", "+useOf(v.Volume)))
		}
		if v.Name != string(v.ID) && strings.HasPrefix(v.Name, begun) {
			out = append(out, v.Name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
