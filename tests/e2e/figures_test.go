package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// figures are what the tests have measured, for people.
var (
	figuresMu sync.Mutex
	figures   []string
)

func figure(format string, args ...any) {
	figuresMu.Lock()
	defer figuresMu.Unlock()
	figures = append(figures, fmt.Sprintf(format, args...))
}

// writeFigures adds them to e2e.txt in BELAY_REPORT_DIR, and prints them.
func writeFigures() {
	slices.Sort(figures)
	text := ""
	for _, f := range figures {
		text += f + "\n"
	}
	fmt.Print(text)
	if dir := os.Getenv("BELAY_REPORT_DIR"); dir != "" && text != "" {
		_ = os.WriteFile(filepath.Join(dir, "e2e.txt"), []byte(text), 0o600)
	}
}
