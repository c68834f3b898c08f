//go:build mutants

package mutant

import (
	"fmt"
	"os"
	"slices"
)

// Chosen is which one this process is.
var Chosen = os.Getenv("BELAY_MUTANT")

// The mutants of this build: the chosen one.
var (
	AckBeforeRecord        = is("ack-before-record")
	AttachWithoutPromise   = is("attach-without-promise")
	DetachWithoutFence     = is("detach-without-fence")
	AnySource              = is("any-source")
	NoFlush                = is("no-flush")
	RestartedStillInSync   = is("restarted-still-in-sync")
	ReplacedDiskVotes      = is("replaced-disk-votes")
	LossySource            = is("lossy-source")
	NoReadBack             = is("no-read-back")
	HalfIsMajority         = is("half-is-majority")
	EpochUsedTwice         = is("epoch-used-twice")
	RepairNotFlushed       = is("repair-not-flushed")
	WriteBeforeMark        = is("write-before-mark")
	FlushSparesOne         = is("flush-spares-one")
	FlushWithoutChecksums  = is("flush-without-checksums")
	CleanBeforeReadBack    = is("clean-before-read-back")
	RepairFromAnyCopy      = is("repair-from-any-copy")
	MemberBeforeCopied     = is("member-before-copied")
	SealWithoutReceipt     = is("seal-without-receipt")
	MinorityConfirms       = is("minority-confirms")
	ReceiptOfEarlierWriter = is("receipt-of-earlier-writer")
	FenceOfTheSilent       = is("fence-of-the-silent")
	JournalForgets         = is("journal-forgets")
	NoResend               = is("no-resend")
	YieldWithoutDrain      = is("yield-without-drain")
	WordsForgotten         = is("words-forgotten")
)

// is says whether the mutant is the chosen one. Neither may be one that is not in All.
func is(name string) bool {
	for _, n := range []string{name, Chosen} {
		if n != "" && !slices.ContainsFunc(All, func(m Mutant) bool { return m.Name == n }) {
			panic(fmt.Sprintf("there is no mutant %q", n))
		}
	}
	return name == Chosen
}
