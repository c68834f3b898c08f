package main

import (
	"os"
	"testing"
)

// TestMain lets the test binary be the program where a server under test starts it as its host, and that as an engine. Without it each
// would run all the tests again, and so on.
func TestMain(m *testing.M) {
	if os.Args[0] == "belay" {
		main()
		return
	}
	os.Exit(m.Run())
}
