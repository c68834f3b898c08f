package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMain lets the test binary be the program where a server under test starts it as its host, and that as an engine. Without it each
// would run all the tests again, and so on. As kubectl it is the one that a test has told what to answer.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "belay":
		main()
		return
	case "kubectl":
		os.Exit(fakeKubectl(os.Args[1:]))
	}
	os.Exit(m.Run())
}
