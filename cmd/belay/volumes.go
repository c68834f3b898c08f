package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

const volumesLong = `List the volumes of this machine.

USE is "attached" from the moment a writer may exist until a receipt is in force, "published" where the orchestrator holds the
volume and no writer has attached, and "detached" otherwise. IN SYNC counts the replicas that hold everything acknowledged.
RECEIPT is the newest one in force: its kind and when it was signed.`

func newVolumes(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "volumes", Short: "list the volumes", Long: volumesLong,
		Example: "  belay volumes\n  belay volumes -o json | jq -r '.[] | select(.state != \"Healthy\") | .id'",
		Args:    usageArgs(cobra.NoArgs), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := o.client().Volumes(cmd.Context())
			if err != nil {
				return err
			}
			print := printVolumes
			if o.output == outJSON {
				print = func(w io.Writer, all []admin.Volume) error { return printJSON(w, all) }
			}
			return errors.Join(print(cmd.OutOrStdout(), all.Volumes), all.Err())
		},
	}
}

// column is one of the table of volumes.
type column struct {
	head string
	of   func(admin.Volume) string
}

var volumeColumns = []column{
	{"ID", nameOf},
	{"NAME", func(v admin.Volume) string { return orDash(v.Name) }},
	{"SIZE", func(v admin.Volume) string { return v.Size.String() }},
	{"STATE", func(v admin.Volume) string { return string(v.State) }},
	{"NODE", func(v admin.Volume) string { return nodeOf(v.Volume) }},
	{"USE", func(v admin.Volume) string { return useOf(v.Volume) }},
	{"IN SYNC", func(v admin.Volume) string { return inSync(v.Volume) }},
	{"ENGINE", func(v admin.Volume) string { return engineOf(v.Volume) }},
	{"RECEIPT", newestReceipt},
}

func printVolumes(w io.Writer, all []admin.Volume) error {
	return printTable(w, all, volumeColumns)
}

func printTable(w io.Writer, all []admin.Volume, columns []column) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "no volumes")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(cell func(column) string) {
		var cells []string
		for _, c := range columns {
			cells = append(cells, cell(c))
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	line(func(c column) string { return c.head })
	for _, v := range all {
		line(func(c column) string { return c.of(v) })
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return printReasons(w, all)
}

func printReasons(w io.Writer, all []admin.Volume) error {
	for _, v := range all {
		for _, reason := range []string{v.Reason, v.ReceiptError, damage(v.Format)} {
			if reason == "" {
				continue
			}
			if _, err := fmt.Fprintf(w, "%s: %s\n", nameOf(v), reason); err != nil {
				return err
			}
		}
	}
	return nil
}

// damage says that a volume cannot be mounted for its filesystem.
func damage(f engine.Format) string {
	if f.Doubt != engine.Damaged {
		return ""
	}
	return "its " + f.FSType + " is damaged and is not mounted until somebody has repaired it; `belay history` has what was found"
}

// nameOf is how a volume is named to the other commands: by its ID, and its machine where several were asked.
func nameOf(v admin.Volume) string {
	if v.At == "" {
		return string(v.ID)
	}
	handle, err := volume.Handle(v.ID, v.At)
	if err != nil {
		return string(v.ID)
	}
	return handle
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func nodeOf(v engine.Volume) string {
	if v.Attachment == nil {
		return "-"
	}
	return string(v.Attachment.Node)
}

// useOf says whether a writer may exist. Attached ends with a receipt and with nothing else.
func useOf(v engine.Volume) string {
	switch {
	case !v.Sealed:
		return "attached"
	case v.Attachment != nil:
		return "published"
	}
	return "detached"
}

// engineOf is the version that serves the volume's device.
func engineOf(v engine.Volume) string {
	if v.Process == nil || v.Process.PID == 0 {
		return "-"
	}
	return v.Process.Version
}

func inSync(v engine.Volume) string {
	n := 0
	for _, r := range v.Replicas {
		if r.State == engine.InSync {
			n++
		}
	}
	return fmt.Sprintf("%d/%d", n, len(v.Replicas))
}

func newestReceipt(v admin.Volume) string {
	switch {
	case v.ReceiptError != "":
		return "unreadable"
	case v.Receipt == nil:
		return "-"
	}
	return fmt.Sprintf("%s, %s", v.Receipt.Kind, v.Receipt.At.Local().Format(time.DateTime))
}
