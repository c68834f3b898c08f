package enginetest

import "testing"

func TestMemory(t *testing.T) { Suite(t, MemoryHarness) }
