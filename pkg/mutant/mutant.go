// Package mutant has the wrong variants of the protocol that the tests must find: each is a thing that a storage engine may do wrong, and
// most are things that some engine has done.
//
// They are there in a build with the tag "mutants" only, where the variable BELAY_MUTANT chooses one. In every other build each is the
// constant false, and what it would do is not in the program. The program itself cannot be built with the tag (cmd/belay).
// "make mutants" fails unless the simulation or the crash explorer kills each of them within a minute.
package mutant
