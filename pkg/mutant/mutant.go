// Package mutant has the wrong variants of the protocol that the tests must find: each is a thing that a storage engine may do wrong, and
// most are things that some engine has done.
//
// They are there in a build with the tag "mutants" only, where the variable BELAY_MUTANT chooses one. In every other build each is the
// constant false, and what it would do is not in the program. The program itself cannot be built with the tag (cmd/belay).
// "make mutants" fails unless the simulation kills each of them within a minute (tests/mutants).
package mutant

// Mutant is one of them.
type Mutant struct {
	Name string // for BELAY_MUTANT
	Does string // what it does wrong
}

// All are all of them, those of the protocol first.
var All = []Mutant{
	{"ack-before-record", "acknowledges before the removal of a failed member is on record at a majority"},
	{"attach-without-promise", "attaches without having the replicas promise its epoch"},
	{"detach-without-fence", "takes writes behind the barrier of a detach"},
	{"any-source", "recovers from any replica that answers, a member or not"},
	{"no-flush", "detaches without a flush"},
	{"restarted-still-in-sync", "counts a member that failed as in sync as soon as it is back"},
	{"replaced-disk-votes", "lets a replica of another incarnation vote"},
	{"lossy-source", "takes over from a member that has lost its cache"},
	{"no-read-back", "seals what it has not read back"},
	{"half-is-majority", "takes half of the voters for a majority"},
	{"epoch-used-twice", "attaches under an epoch that was promised before"},
	{"repair-not-flushed", "mends blocks that a detach has found wrong, and does not flush them"},
	{"write-before-mark", "writes in regions that are not marked as dirty"},
	{"flush-spares-one", "acknowledges a flush that one member has not done"},
	{"flush-without-checksums", "acknowledges a flush without having written the checksums"},
	{"clean-before-read-back", "takes regions for clean that the background verifier has not read back"},
	{"repair-from-any-copy", "mends a block from the first copy, right or wrong"},
	{"member-before-copied", "makes a replica a member before it has what it missed"},
	{"seal-without-receipt", "seals without having kept the receipt that the seal names"},
	{"minority-confirms", "passes a detach that a minority of the replicas confirms"},
	{"receipt-of-earlier-writer", "takes the receipt of an earlier writer for that of the last"},
	{"fence-of-the-silent", "fences a node that does not answer, without a reason to believe that it is lost"},
	{"journal-forgets", "removes the entry of the stage journal before the receipt is in force"},
	{"no-resend", "takes a device over and does not have the kernel ask again what was not answered"},
	{"yield-without-drain", "yields the device while its requests are being served"},
	{"words-forgotten", "forgets what an engine that could serve no more has said of its members"},
}
