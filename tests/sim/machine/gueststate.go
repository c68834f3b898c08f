package machine

// Dead says that the device answers nothing but errors any more.
func (g *Guest) Dead() bool {
	g.dev.machine.mu.Lock()
	defer g.dev.machine.mu.Unlock()
	return g.dev.over != nil
}

// Used says that the device is open.
func (g *Guest) Used() bool { return !g.closed.Load() }
