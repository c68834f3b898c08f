//go:build !mutants

package mutant

// Chosen is which one this process is.
const Chosen = ""

// The mutants of this build: none.
const (
	AckBeforeRecord        = false
	AttachWithoutPromise   = false
	DetachWithoutFence     = false
	AnySource              = false
	NoFlush                = false
	RestartedStillInSync   = false
	ReplacedDiskVotes      = false
	LossySource            = false
	NoReadBack             = false
	HalfIsMajority         = false
	EpochUsedTwice         = false
	RepairNotFlushed       = false
	WriteBeforeMark        = false
	FlushSparesOne         = false
	FlushWithoutChecksums  = false
	CleanBeforeReadBack    = false
	RepairFromAnyCopy      = false
	MemberBeforeCopied     = false
	SealWithoutReceipt     = false
	MinorityConfirms       = false
	ReceiptOfEarlierWriter = false
	FenceOfTheSilent       = false
	JournalForgets         = false
	NoResend               = false
	YieldWithoutDrain      = false
	WordsForgotten         = false
)
