package driver

import "testing"

// Calls are repeated; what happened is told once.
func TestEventsAreToldOnce(t *testing.T) {
	root(t)
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer))
	p.create("data", 64, asMount("ext4", writer))
	s.publish()
	s.publish()
	must(t, s.stage())
	must(t, s.stage())
	must(t, s.show())
	if got := p.told(); got != "created data; published data; staged data mount" {
		t.Errorf("told: %s", got)
	}
	s.leave()
	if got := p.told(); got != "deleted data" {
		t.Errorf("told: %s", got)
	}
}
