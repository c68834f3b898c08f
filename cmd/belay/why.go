package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

const whyLong = `Say on one screen what holds a volume, who said what, what a detach would be answered now, what to do next, and what
happened last.

Nothing is changed by asking.`

func newWhy(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "why VOLUME", Short: "say what holds a volume and what to do next", Long: whyLong,
		Example: "  belay why pvc-1a2b\n  belay why pvc-1a2b -o json | jq .next",
		Args:    oneVolume, ValidArgsFunction: o.completeVolume,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := o.client().Why(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if o.output == outJSON {
				return printJSON(cmd.OutOrStdout(), r)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.TrimRight(r.Text(), "\n"))
			return err
		},
	}
}
