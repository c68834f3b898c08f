// Package machine is a simulated machine: processes, sockets, files and block devices on which a host, its engine processes and those
// who ask them run as they are in production, under the simulated clock of a testing/synctest bubble.
//
//	m := machine.New(machine.Config{Seed: 1, Files: func(p *machine.Process) vfs.FS { … }, Trace: log})
//	m.Install("/belay", func(ctx context.Context, p *machine.Process, e host.EngineProcess) error {
//		return e.Run(ctx, mirror.Program(mirror.Process{Files: p.Files(), Version: "1", Log: log}), log) // its sessions: see mirror_test.go
//	})
//	h := m.Start("host", func(ctx context.Context, p *machine.Process) error {
//		h, err := host.New(host.Config{State: "/state", Version: "1", Machine: p.Machine(), Log: log})
//		if err != nil {
//			return err
//		}
//		return h.Serve(ctx)
//	})
//	server := m.Start("serve", …)                                 // mirror.Config{Machine: server.Machine(), FS: server.Files(), …}
//	client := host.NewClientOn(server.Network(), "/state")        // mirror.Config.Host
//	d, err := client.Attach(ctx, spec, nil)                       // spec.Executable is "/belay"
//	guest, err := m.OpenDevice(d.Path)                            // waits while nobody serves
//	m.Find(d.Engine.PID).Kill()                                   // and Stop, Continue, OnKill; m.PowerCut()
//	m.KillAll(); m.Wait()                                         // before the bubble ends
//
// What it promises, as a kernel does:
//
//   - A process is dead as soon as Kill returns. Nothing that it does later through the machine has an effect: each such call
//     returns an error that wraps ErrKilled, so that its goroutines come to an end by themselves, within minutes of simulated time.
//     Its sockets, its locks and its hold of devices are gone, and whoever waits for its death is told. A process that returns from
//     what it runs dies in the same way.
//   - A stopped process does nothing: each of its calls waits until it goes on or is killed. Only what it computes between two
//     calls goes on.
//   - A call over a socket is encoded as on a real one. To a process that dies it is lost; from one that dies it is hung up.
//   - A device lives while a process has its channel. What its dead server had taken is asked again when the next server says so. With the
//     last process it dies, and each request fails with EIO, then and later.
//   - PowerCut ends all processes and devices at once.
//
// Nothing depends on the real clock, on the order of a map or on chance: how long a call takes is drawn from the seed, the process and how
// many of its kind there were. No two calls take equally long, so that hardly anything happens at the same simulated moment.
//
// Calls of Machine and Process may run concurrently. OnKill's functions and Config's must not wait.
package machine
