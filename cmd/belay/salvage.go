package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
)

const salvageLong = `Show what every store holds of a volume, whether it comes up by itself, and what you may decide where it does not.

Without --from nothing is changed. A volume whose stores were away comes up by itself as soon as a majority of them is back and one of those
holds everything that was acknowledged; then there is nothing to salvage, and --from is refused. Where that can never be again, or
copies disagree and nobody can tell which is right, you may decide for one store. What is lost or risked by each choice is listed: by
configurations, checksums and their versions, never by modification times or file sizes.

With --from that store's copy becomes the volume. The stores that are there are rebuilt from it at the next attach, those that have none get
one; stores that are away count no more, whatever they hold, and are not touched when they come back. The decision, its reason and what it gave
up are in a "forced" receipt, for good. The next attach is unclean, so that the file system is checked. Cut short, it is finished by the same command.

A store is named by its directory, by its ID, or by the beginning of that.`

const salvageExample = `  belay salvage pvc-1a2b
  belay salvage pvc-1a2b --read                    # read every block, and count those that are wrong
  belay salvage pvc-1a2b -o json | jq '.choices[] | {place, lostBlocks, loses}'
  belay salvage pvc-1a2b --from /srv/a --reason "ticket 4711: disks of /srv/b and /srv/c destroyed"`

type salvageFlags struct {
	from   string
	reason string
	read   bool
	by     string
	yes    bool
	kill   bool
}

func newSalvage(o *options) *cobra.Command {
	f := &salvageFlags{}
	cmd := &cobra.Command{
		Use: "salvage VOLUME [--from STORE --reason TEXT]", Short: "show what each store holds, and decide for one where the rules do not", Long: salvageLong,
		Example: salvageExample, Args: oneVolume, ValidArgsFunction: o.completeVolume,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return usageError{err}
			}
			return o.salvage(cmd, args[0], f)
		},
	}
	cmd.Flags().StringVar(&f.from, "from", "", "store whose copy becomes the volume: its directory, its ID or the beginning of that")
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, kept in the receipt (required with --from)")
	cmd.Flags().StringVar(&f.by, "by", "", "who decides it, where that is not the user of this process; kept in the receipt beside that user")
	cmd.Flags().BoolVar(&f.read, "read", false, "read every block of every store for the report")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&f.kill, "kill", false, "give up a device that stands still: who uses it sees errors")
	_ = cmd.RegisterFlagCompletionFunc("from", o.completeChoice)
	return cmd
}

func (f *salvageFlags) check() error {
	switch chosen := f.from != ""; {
	case chosen && strings.TrimSpace(f.reason) == "":
		return errors.New("--from needs --reason")
	case !chosen && (f.reason != "" || f.by != "" || f.yes || f.kill):
		return errors.New("--reason, --by, --yes and --kill are of no use without --from")
	}
	return nil
}

func (o *options) salvage(cmd *cobra.Command, name string, f *salvageFlags) error {
	show := newShow(cmd.ErrOrStderr(), "read "+name)
	p, err := o.client().SalvagePlan(cmd.Context(), name, f.read, show.progress)
	show.end()
	switch {
	case err != nil:
		return err
	case f.from != "":
		return o.salvageFrom(cmd, p, f)
	case o.output == outJSON:
		return printJSON(cmd.OutOrStdout(), p)
	}
	_, err = io.WriteString(cmd.OutOrStdout(), planText(p))
	return err
}

func (o *options) salvageFrom(cmd *cobra.Command, p admin.SalvagePlan, f *salvageFlags) error {
	from, err := storeOf(p, f.from)
	if err != nil {
		return err
	}
	if c := choiceOf(p, from); c != nil && !f.yes { // where it is no choice the server says why
		if err := confirm(cmd, p, *c); err != nil {
			return err
		}
	}
	show := newShow(cmd.ErrOrStderr(), "salvage "+string(p.Volume))
	r, err := o.client().Salvage(cmd.Context(), string(p.Volume), detach.Salvage{From: from, Reason: f.reason, Actor: actorFor(f.by), Kill: f.kill}, show.progress)
	show.end()
	if err != nil {
		return err
	}
	return o.printReceipt(cmd.OutOrStdout(), r)
}

// prefixMin is the shortest beginning of an ID that names a store.
const prefixMin = 4

// storeOf finds the store that is named by its place, its ID, or the beginning of that.
func storeOf(p admin.SalvagePlan, name string) (engine.ReplicaID, error) {
	var found []engine.ReplicaID
	for _, c := range p.Copies {
		if c.Place == strings.TrimRight(name, "/") || string(c.ID) == name || len(name) >= prefixMin && strings.HasPrefix(string(c.ID), name) {
			found = append(found, c.ID)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fmt.Errorf("volume %s has nothing on a store %q; `belay salvage %s` lists those that have", p.Volume, name, p.Volume)
	}
	return "", fmt.Errorf("volume %s: %q names %d stores; give the whole ID", p.Volume, name, len(found))
}

func choiceOf(p admin.SalvagePlan, id engine.ReplicaID) *engine.SalvageChoice {
	for i := range p.Choices {
		if p.Choices[i].From == id {
			return &p.Choices[i]
		}
	}
	return nil
}

// confirm asks a person for the volume's name. Where there is nobody to ask, --yes is the answer.
func confirm(cmd *cobra.Command, p admin.SalvagePlan, c engine.SalvageChoice) error {
	in, ok := terminal(cmd)
	if !ok {
		return usageError{errors.New("nobody can be asked here: give --yes once you have read what `belay salvage " + string(p.Volume) + "` says is lost")}
	}
	return ask(cmd.Context(), in, cmd.ErrOrStderr(), p, c)
}

// terminal is where a person can be asked.
func terminal(cmd *cobra.Command) (*os.File, bool) {
	in, ok := cmd.InOrStdin().(*os.File)
	return in, ok && term.IsTerminal(int(in.Fd()))
}

func ask(ctx context.Context, in io.Reader, out io.Writer, p admin.SalvagePlan, c engine.SalvageChoice) error {
	var b strings.Builder
	writeChoice(&b, c)
	fmt.Fprintf(out, "volume %s becomes what this store holds:\n%sThis cannot be taken back. Type the volume's ID to go on: ", p.Volume, b.String())
	return typed(ctx, in, string(p.Volume))
}

// typed waits for a line, which must be the word.
func typed(ctx context.Context, in io.Reader, word string) error {
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(in).ReadString('\n') // an error leaves what was typed before it
		answer <- strings.TrimSpace(line)
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case got := <-answer:
		if got != word {
			return errors.New("not confirmed; nothing was changed")
		}
	}
	return nil
}

// completeChoice offers the stores that can be chosen.
func (o *options) completeChoice(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), completeWithin)
	defer cancel()
	p, err := o.client().SalvagePlan(ctx, args[0], false, nil)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []cobra.Completion
	for _, c := range p.Choices {
		if strings.HasPrefix(c.Place, begun) {
			out = append(out, cobra.CompletionWithDesc(c.Place, fmt.Sprintf("configuration %s, %s given up", c.Configuration, plural(c.LostBlocks, "block"))))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
