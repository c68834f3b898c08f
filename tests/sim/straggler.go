package sim

import (
	"errors"
	"time"
)

// errUnanswered: requests of the guest are not answered, although nothing goes wrong any more.
var errUnanswered = errors.New("requests of the guest are not answered")

// patiently returns what do returns. The run has failed where nobody answers for long after all faults have gone; do goes on then until
// the machine ends.
func (o *orchestrator) patiently(what string, do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	for since := time.Duration(0); since < patience; since += patience / 20 {
		select {
		case err := <-done:
			return err
		case <-time.After(patience / 20):
		}
		switch {
		case !o.w.healed():
			since = 0
		case since > patience/2 && !o.relieved:
			o.relieved = true
			o.w.relieve()
		}
	}
	o.w.fail("%s: nothing for %v after all faults have gone", what, patience)
	return errUnanswered
}

// straggle has a guest go on with the device that nobody knows of any more: what it is told is written must be in the receipt, and after that
// it must be told nothing of the kind.
func (o *orchestrator) straggle(d *attached) {
	again, err := o.w.programs.machine.OpenDevice(d.path)
	if err != nil {
		return // it is gone
	}
	o.w.count(straggler)
	own := &attached{w: o.w, guest: again, path: d.path}
	l := o.w.guest.run(own, o.w.plan.regions*regionBlocks, o.w.plan.streams)
	o.straggling = make(chan struct{})
	go func(over chan struct{}) {
		defer close(over)
		l.wg.Wait() // each stream ends with the first write that is refused
		own.close()
	}(o.straggling)
}

// straggled returns when such a guest has ended.
func (o *orchestrator) straggled() {
	if o.straggling == nil {
		return
	}
	over := o.straggling
	o.straggling = nil
	_ = o.patiently("the end of a guest whose device is gone", func() error { <-over; return nil })
}
