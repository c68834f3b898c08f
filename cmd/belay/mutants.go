//go:build mutants

package main

// A program that was built to be wrong must not exist.
var _ = wrongVariantsAreForTestsOnly
