package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/history"
)

const historyLong = `Show what became of a volume, oldest first: when it was created, attached, checked, taken over by another engine, upgraded, fenced,
detached, and why.

It is kept beside the server's state, at most 512 entries or 256 KiB of a volume; the oldest make room, and their number is told. It goes with
the volume when that is deleted. It explains and proves nothing: "belay receipts VOLUME" proves.`

func newHistory(o *options) *cobra.Command {
	last := 0
	cmd := &cobra.Command{
		Use: "history VOLUME", Short: "show what became of a volume", Long: historyLong,
		Example: `  belay history pvc-1a2b
  belay history pvc-1a2b --last 10
  belay history pvc-1a2b -o json | jq '.entries[] | select(.kind == "checked")'`,
		Args: oneVolume, ValidArgsFunction: o.completeVolume,
		RunE: func(cmd *cobra.Command, args []string) error {
			if last < 0 {
				return usageError{fmt.Errorf("--last %d: want 0 or more", last)}
			}
			h, err := o.client().History(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if last > 0 {
				h.Entries = h.Newest(last)
			}
			if o.output == outJSON {
				return printJSON(cmd.OutOrStdout(), h)
			}
			return printHistory(cmd.OutOrStdout(), h)
		},
	}
	cmd.Flags().IntVar(&last, "last", 0, "show the newest entries only, so many (default: all)")
	return cmd
}

func printHistory(w io.Writer, h history.History) error {
	if h.Dropped > 0 {
		fmt.Fprintf(w, "%d older entries made room, the newest of them of %s\n", h.Dropped, h.Until.Local().Format(time.DateTime))
	}
	if h.Damaged > 0 {
		fmt.Fprintf(w, "%d bytes of it are damaged or unfinished, and left out\n", h.Damaged)
	}
	if len(h.Entries) == 0 {
		_, err := fmt.Fprintln(w, "nothing is kept of volume "+string(h.Volume))
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TIME\tWHAT\tEPOCH\tTOOK\tDETAILS")
	for _, e := range h.Entries {
		epoch, took := "-", "-"
		if e.Epoch != 0 {
			epoch = fmt.Sprint(e.Epoch)
		}
		if e.Took != 0 {
			took = history.Took(e.Took)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", e.Time.Local().Format(time.DateTime), e.Kind, epoch, took, orDash(e.Text))
	}
	return t.Flush()
}
