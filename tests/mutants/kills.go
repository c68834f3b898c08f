package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/belay-storage/belay/pkg/mutant"
)

// kill is a seed, and the profile of faults that is drawn from; empty: as the seed has it.
type kill struct {
	seed    uint64
	profile string
}

func (k kill) String() string {
	if k.profile == "" {
		return fmt.Sprint("seed ", k.seed)
	}
	return fmt.Sprintf("seed %d of %s", k.seed, k.profile)
}

// profiles are where a mutant is looked for that only one kind of fault can show.
var profiles = map[string]string{
	"no-read-back": "lies", "repair-not-flushed": "lies", "repair-from-any-copy": "lies", "clean-before-read-back": "rot",
	"attach-without-promise": "takeovers", "words-forgotten": "resets", "lossy-source": "takeovers",
	"ack-before-record": "failures", "any-source": "failures", "restarted-still-in-sync": "failures", "replaced-disk-votes": "failures",
}

// kills are seeds by mutant.
type kills map[string][]kill

// readKills reads lines "MUTANT SEED [PROFILE]". A file that is not there knows nothing.
func readKills(name string) (kills, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return kills{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := kills{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		words := strings.Fields(lines.Text())
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		k, err := parseKill(words)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
		out[words[0]] = append(out[words[0]], k)
	}
	return out, lines.Err()
}

func parseKill(words []string) (k kill, err error) {
	if len(words) < 2 || len(words) > 3 || !isMutant(words[0]) {
		return k, fmt.Errorf("want the name of a mutant, a seed, and perhaps a profile: %q", strings.Join(words, " "))
	}
	if len(words) == 3 {
		k.profile = words[2]
	}
	k.seed, err = strconv.ParseUint(words[1], 10, 64)
	return k, err
}

func isMutant(name string) bool {
	return slices.ContainsFunc(mutant.All, func(m mutant.Mutant) bool { return m.Name == name })
}

// writeKills replaces the file by what has killed each mutant now.
func writeKills(name string, verdicts []verdict) error {
	var b strings.Builder
	b.WriteString("# The seeds of tests/sim that are tried first for each mutant, and the profile they are of. Written by go run ./tests/mutants -learn:\n" +
		"# a change of the code or of the simulation moves what a seed does.\n")
	for _, v := range verdicts {
		if !v.killed {
			continue
		}
		for _, k := range append([]kill{v.by}, v.others...) {
			b.WriteString(strings.TrimSpace(fmt.Sprintf("%s %d %s", v.mutant.Name, k.seed, k.profile)) + "\n")
		}
	}
	return os.WriteFile(name, []byte(b.String()), 0o644)
}
