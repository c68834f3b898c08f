//go:build mutants

package mutant

import "os"

// Chosen is which one this process is.
var Chosen = os.Getenv("BELAY_MUTANT")

// The mutants of this build: the chosen one.
var (
	AckBeforeRecord        = Chosen == "ack-before-record"
	AttachWithoutPromise   = Chosen == "attach-without-promise"
	DetachWithoutFence     = Chosen == "detach-without-fence"
	AnySource              = Chosen == "any-source"
	NoFlush                = Chosen == "no-flush"
	RestartedStillInSync   = Chosen == "restarted-still-in-sync"
	ReplacedDiskVotes      = Chosen == "replaced-disk-votes"
	LossySource            = Chosen == "lossy-source"
	NoReadBack             = Chosen == "no-read-back"
	HalfIsMajority         = Chosen == "half-is-majority"
	EpochUsedTwice         = Chosen == "epoch-used-twice"
	OlderCopyWins          = Chosen == "older-copy-wins"
	WriteBeforeMark        = Chosen == "write-before-mark"
	FlushSparesOne         = Chosen == "flush-spares-one"
	FlushWithoutChecksums  = Chosen == "flush-without-checksums"
	CleanBeforeReadBack    = Chosen == "clean-before-read-back"
	RepairFromAnyCopy      = Chosen == "repair-from-any-copy"
	MemberBeforeCopied     = Chosen == "member-before-copied"
	SealWithoutReceipt     = Chosen == "seal-without-receipt"
	MinorityConfirms       = Chosen == "minority-confirms"
	ReceiptOfEarlierWriter = Chosen == "receipt-of-earlier-writer"
	FenceOfTheSilent       = Chosen == "fence-of-the-silent"
	JournalForgets         = Chosen == "journal-forgets"
	NoResend               = Chosen == "no-resend"
	YieldWithoutDrain      = Chosen == "yield-without-drain"
	WordsForgotten         = Chosen == "words-forgotten"
)
