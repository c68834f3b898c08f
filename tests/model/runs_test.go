package model

// run is one search: a model, its switches, and what must come of it.
type run struct {
	name     string
	model    string // file
	switches string
	// violates is the label of the assertion that must be found violated, a wrong variant of the protocol, or a
	// limit of it. Empty: the protocol as it is, in which nothing may be, the whole space searched.
	violates string
	long     bool // only where there is time: not with -short
}

// The runs, all of them. What the switches mean stands at the head of each model; DESIGN.md says why these.
var runs = []run{
	// One writer at a time.
	{name: "attached, 1 power cut", model: "detach.pml", switches: "-DPRE -DFIX -DW=1"},
	{name: "rebuild", model: "detach.pml", switches: "-DPRE -DFIX -DW=1 -DRJ=1"},
	{name: "warm", model: "detach.pml", switches: "-DPRE -DFIX -DW=1 -DWARM"},
	{name: "dropped write, next after a receipt", model: "detach.pml", switches: "-DPRE -DFIX -DGATED -DLIES=1 -DNET=1"},
	{name: "1 voter, 2 power cuts", model: "detach.pml", switches: "-DPRE -DFIX -DN=1 -DCR=2 -DNET=1 -DRJ=1"},
	{name: "2 voters", model: "detach.pml", switches: "-DPRE -DFIX -DN=2 -DW=1 -DNET=1 -DRJ=1"},
	{name: "2 voters, warm", model: "detach.pml", switches: "-DPRE -DFIX -DN=2 -DNET=1 -DWARM"},
	{name: "4 voters", model: "detach.pml", switches: "-DPRE -DFIX -DN=4 -DW=1"},
	{name: "2 writes, lost reply", model: "detach.pml", switches: "-DPRE -DFIX -DNET=1", long: true},
	{name: "2 writes, lost reply, warm", model: "detach.pml", switches: "-DPRE -DFIX -DNET=1 -DWARM", long: true},
	{name: "2 writes, rebuild", model: "detach.pml", switches: "-DPRE -DFIX -DRJ=1", long: true},
	{name: "replicas in any order", model: "detach.pml", switches: "-DPRE -DW=1", long: true},
	{name: "both attach from scratch", model: "detach.pml", switches: "-DFIX -DW=1", long: true},
	{name: "3 engines", model: "detach.pml", switches: "-DPRE -DFIX -DW=1 -DENG=3", long: true},
	{name: "3 power cuts", model: "detach.pml", switches: "-DPRE -DFIX -DW=1 -DCR=3", long: true},
	{name: "2 voters, 2 power cuts, lost reply, rebuild", model: "detach.pml", switches: "-DPRE -DFIX -DN=2 -DCR=2 -DNET=1 -DRJ=1", long: true},
	{name: "4 voters, 2 power cuts", model: "detach.pml", switches: "-DPRE -DFIX -DN=4 -DW=1 -DCR=2", long: true},
	{name: "4 voters, lost reply", model: "detach.pml", switches: "-DPRE -DFIX -DN=4 -DW=1 -DNET=1", long: true},
	{name: "5 voters", model: "detach.pml", switches: "-DPRE -DFIX -DN=5 -DW=1", long: true},

	// An engine that goes on without a majority.
	{name: "goes on, 2 voters, rebuild", model: "detach.pml", switches: "-DPRE -DFIX -DLOCKED -DGO_ON -DN=2 -DW=1 -DMEMBERS=1 -DRJ=1 -DNET=1"},
	{name: "goes on, 3 voters, 1 away, warm", model: "detach.pml", switches: "-DPRE -DFIX -DLOCKED -DGO_ON -DWARM -DW=1 -DMEMBERS=3 -DAWAY=4 -DNET=1"},
	{name: "goes on, 2 voters, rebuild, warm, twice", model: "detach.pml", switches: "-DPRE -DFIX -DLOCKED -DGO_ON -DWARM -DN=2 -DW=1 -DMEMBERS=1 -DRJ=1 -DNET=1 -DFAILS=2", long: true},
	{name: "goes on, 3 voters, rebuild", model: "detach.pml", switches: "-DPRE -DFIX -DLOCKED -DGO_ON -DW=1 -DMEMBERS=1 -DRJ=1 -DNET=1", long: true},
	{name: "goes on, 3 voters, rebuild, warm, twice", model: "detach.pml", switches: "-DPRE -DFIX -DLOCKED -DGO_ON -DWARM -DW=1 -DMEMBERS=1 -DRJ=1 -DNET=1 -DFAILS=2", long: true},
	{name: "goes on, 3 voters, warm, 2 power cuts, twice", model: "detach.pml", switches: "-DPRE -DFIX -DLOCKED -DGO_ON -DWARM -DW=1 -DMEMBERS=3 -DCR=2 -DNET=1 -DFAILS=2", long: true},
	{name: "goes on, 3 voters, rebuild, engines beside each other", model: "detach.pml", switches: "-DPRE -DFIX -DGO_ON -DW=1 -DMEMBERS=1 -DRJ=1 -DNET=1", long: true},
	{name: "goes on, 4 voters, 1 away, rebuild, 2 power cuts", model: "detach.pml", switches: "-DPRE -DFIX -DLOCKED -DGO_ON -DN=4 -DW=1 -DMEMBERS=1 -DAWAY=8 -DRJ=1 -DCR=2", long: true},
	{name: "goes on, 4 voters, 1 away, warm, 2 power cuts", model: "detach.pml", switches: "-DPRE -DFIX -DLOCKED -DGO_ON -DWARM -DN=4 -DW=1 -DMEMBERS=3 -DAWAY=8 -DCR=2", long: true},

	{name: "flush acknowledged before the removal is in force", model: "detach.pml", switches: "-DPRE -DFIX -DACK_EARLY", violates: "I5"},
	{name: "receipt without a seal", model: "detach.pml", switches: "-DPRE -DFIX -DNOFENCE_DETACH", violates: "I6"},
	{name: "attach without a promise", model: "detach.pml", switches: "-DPRE -DFIX -DNOFENCE_ATTACH", violates: "I5"},
	{name: "any replica as source", model: "detach.pml", switches: "-DPRE -DFIX -DANYSRC", violates: "I5"},
	{name: "detach without a flush", model: "detach.pml", switches: "-DPRE -DFIX -DNOFLUSH -DGATED", violates: "I1"},
	{name: "restarted replica still in sync", model: "detach.pml", switches: "-DPRE -DFIX -DNOSESSION", violates: "I5"},
	{name: "replaced disk keeps its vote", model: "detach.pml", switches: "-DPRE -DFIX -DAMNESIA", violates: "I5"},
	{name: "receipt without read-back", model: "detach.pml", switches: "-DPRE -DFIX -DNOVERIFY -DGATED -DLIES=1", violates: "I4"},
	{name: "warm from a lossy source", model: "detach.pml", switches: "-DPRE -DFIX -DLOSSYSRC -DWARM", violates: "I5"},
	{name: "half of 2 voters is a majority", model: "detach.pml", switches: "-DPRE -DFIX -DHALF -DN=2 -DW=1", violates: "I5"},
	{name: "half of 4 voters is a majority", model: "detach.pml", switches: "-DPRE -DFIX -DHALF -DN=4 -DW=1 -DCR=2", violates: "I5"},
	{name: "proposed without a majority, and no member", model: "detach.pml", switches: "-DPRE -DFIX -DLOCKED -DGO_ON -DN=2 -DW=1 -DMEMBERS=1 -DRJ=1 -DCR=0 -DNET=1 -DDOUBT_FORGOTTEN", violates: "I1"},
	{name: "the same, 4 voters, nobody says that it failed", model: "detach.pml", switches: "-DPRE -DFIX -DLOCKED -DGO_ON -DN=4 -DW=1 -DMEMBERS=1 -DAWAY=8 -DRJ=1 -DCR=2 -DDOUBT_FORGOTTEN", violates: "I1", long: true},
	{name: "told that it is a member before it is excluded", model: "detach.pml", switches: "-DPRE -DFIX -DLOCKED -DGO_ON -DWARM -DN=2 -DW=1 -DNET=1 -DTOLD_TO_STAY", violates: "I3"},
	{name: "a member that has not taken that it is one", model: "detach.pml", switches: "-DPRE -DFIX -DLOCKED -DGO_ON -DWARM -DN=2 -DW=1 -DMEMBERS=1 -DRJ=1 -DNET=1 -DUNTOLD", violates: "I3"},
	{name: "session closed before the exclusion is in force", model: "detach.pml", switches: "-DPRE -DFIX -DLOCKED -DGO_ON -DWARM -DW=1 -DMEMBERS=3 -DAWAY=4 -DNET=1 -DCLOSED_EARLY", violates: "I3"},
	{name: "limit: dropped write, no detach, no checksums", model: "detach.pml", switches: "-DPRE -DFIX -DLIES=1", violates: "I5"},

	// A device that outlives its engine.
	{name: "2 replicas, 2 writes", model: "upgrade.pml", switches: "-DFIX -DN=2 -DCR=0"},
	{name: "2 replicas, 1 write, 2 reads, power cut", model: "upgrade.pml", switches: "-DFIX -DN=2 -DW=1 -DRDS=2"},
	{name: "3 replicas, 2 writes", model: "upgrade.pml", switches: "-DFIX -DCR=0"},
	{name: "3 replicas, power cut", model: "upgrade.pml", switches: "-DFIX -DW=1"},
	{name: "2 replicas, dies while settling, 3 engines", model: "upgrade.pml", switches: "-DFIX -DN=2 -DW=1 -DCR=0 -DENG=3"},
	{name: "2 replicas, 2 writes, power cut", model: "upgrade.pml", switches: "-DFIX -DN=2", long: true},
	{name: "3 replicas, 2 writes, power cut", model: "upgrade.pml", switches: "-DFIX", long: true},
	{name: "3 replicas, lost reply", model: "upgrade.pml", switches: "-DFIX -DW=1 -DCR=0 -DNET=1", long: true},
	{name: "3 writes, 2 reads", model: "upgrade.pml", switches: "-DFIX -DN=2 -DW=3 -DRDS=2 -DCR=0", long: true},
	{name: "3 engines, power cut", model: "upgrade.pml", switches: "-DFIX -DN=2 -DW=1 -DENG=3", long: true},
	{name: "3 replicas, 3 engines", model: "upgrade.pml", switches: "-DFIX -DW=1 -DENG=3 -DCR=0", long: true},
	{name: "flush, then total power loss, cold", model: "upgrade.pml", switches: "-DFIX -DN=2 -DW=1 -DRDS=0 -DFLS=1 -DENG=3 -DCOLD -DCR=2", long: true},
	{name: "rebuild", model: "upgrade.pml", switches: "-DFIX -DW=1 -DRJ=1", long: true},

	{name: "request not asked for again", model: "upgrade.pml", switches: "-DFIX -DN=2 -DREPLAY_DROPPED", violates: "R1"},
	{name: "request of a dead engine taken for done", model: "upgrade.pml", switches: "-DFIX -DN=2 -DREPLAY_ASSUMED", violates: "I3"},
	{name: "replay before the fence", model: "upgrade.pml", switches: "-DFIX -DN=2 -DREPLAY_EARLY", violates: "I8"},
	{name: "yield with requests in hand", model: "upgrade.pml", switches: "-DFIX -DN=2 -DYIELD_BUSY", violates: "R1"},
	{name: "late answer of the old engine counts", model: "upgrade.pml", switches: "-DFIX -DN=2 -DLATE_ANSWER", violates: "I3"},
	{name: "zombie writes behind the fence", model: "upgrade.pml", switches: "-DFIX -DN=2 -DZOMBIE_WRITES", violates: "I8"},
	{name: "warm from a lossy source", model: "upgrade.pml", switches: "-DFIX -DN=2 -DLOSSYSRC", violates: "I3"},
	{name: "restarted replica still in sync", model: "upgrade.pml", switches: "-DFIX -DN=2 -DNOSESSION", violates: "I8"},
	{name: "unsettled block is read", model: "upgrade.pml", switches: "-DFIX -DN=2 -DW=1 -DRDS=2 -DNO_SETTLE", violates: "I3"},
	{name: "settled from one member alone", model: "upgrade.pml", switches: "-DFIX -DN=2 -DW=1 -DRDS=2 -DSETTLE_ALONE", violates: "I3"},
	{name: "write while a block is settled", model: "upgrade.pml", switches: "-DFIX -DN=2 -DSETTLE_UNLOCKED", violates: "I3"},
	{name: "flush leaves out what is unsettled", model: "upgrade.pml", switches: "-DFIX -DN=2 -DW=1 -DRDS=0 -DFLS=1 -DENG=3 -DCOLD -DCR=2 -DFLUSH_SETTLED", violates: "I1"},
	{name: "write acknowledged before the removal is in force", model: "upgrade.pml", switches: "-DFIX -DW=1 -DCR=0 -DNET=1 -DACK_EARLY", violates: "I3"},

	// What a block is where disks lie.
	{name: "2 deaths, power cut", model: "repair.pml", switches: "-DDEATHS=2 -DCUTS=1"},
	{name: "rot, power cut", model: "repair.pml", switches: "-DROTS=1 -DCUTS=1"},
	{name: "dropped write, power cut", model: "repair.pml", switches: "-DLIES=1 -DCUTS=1"},
	{name: "1 replica, rot", model: "repair.pml", switches: "-DN=1 -DROTS=1 -DCUTS=1"},
	{name: "3 replicas, rot, dropped write", model: "repair.pml", switches: "-DN=3 -DW=1 -DROTS=1 -DLIES=1 -DCUTS=1"},
	{name: "dropped write, rebuild", model: "repair.pml", switches: "-DW=1 -DLIES=1 -DAWAY=1"},
	{name: "rot, dropped write, rebuild", model: "repair.pml", switches: "-DW=1 -DROTS=1 -DLIES=1 -DAWAY=1 -DCUTS=1", long: true},
	{name: "rot, dropped write, power cut", model: "repair.pml", switches: "-DROTS=1 -DLIES=1 -DCUTS=1", long: true},
	{name: "2 rots, 2 deaths, power cut", model: "repair.pml", switches: "-DROTS=2 -DDEATHS=2 -DCUTS=1", long: true},
	{name: "rot, rebuild", model: "repair.pml", switches: "-DROTS=1 -DAWAY=1 -DCUTS=1", long: true},
	{name: "dropped write, rebuild, power cut", model: "repair.pml", switches: "-DLIES=1 -DAWAY=1 -DCUTS=1", long: true},
	{name: "3 replicas, rot, 2 deaths, 2 detaches", model: "repair.pml", switches: "-DN=3 -DROTS=1 -DDEATHS=2 -DCUTS=1 -DDETACH=2", long: true},
	{name: "3 replicas, dropped write, rebuild", model: "repair.pml", switches: "-DN=3 -DW=1 -DLIES=1 -DAWAY=1 -DCUTS=1", long: true},

	{name: "repaired from whichever copy", model: "repair.pml", switches: "-DROTS=1 -DMEND_ANY", violates: "V1"},
	{name: "repair makes a newer block old", model: "repair.pml", switches: "-DLIES=1 -DMEND_NEWEST", violates: "V1"},
	{name: "repair not read back", model: "repair.pml", switches: "-DROTS=1 -DLIES=1 -DMEND_UNCHECKED", violates: "I4"},
	{name: "member that did not take a repair is back with what it has", model: "repair.pml", switches: "-DW=1 -DROTS=1 -DLIES=1 -DAWAY=1 -DMEND_FORGOTTEN", violates: "V6"},
	{name: "made clean without read-back", model: "repair.pml", switches: "-DLIES=1 -DCLEAN_UNREAD", violates: "V5"},
	{name: "marks cleared before the sums are there", model: "repair.pml", switches: "-DCLEAN_FIRST", violates: "I4"},
	{name: "entries put right and not flushed", model: "repair.pml", switches: "-DLIES=1 -DENTRIES_UNSYNCED", violates: "V5"},
	{name: "entries put right and not read back", model: "repair.pml", switches: "-DROTS=1 -DLIES=1 -DENTRIES_UNREAD", violates: "V5"},
	{name: "one member's entry believed where it is dirty", model: "repair.pml", switches: "-DLIES=1 -DFIRST_ENTRY", violates: "V2"},
	{name: "rebuilt replica not read back", model: "repair.pml", switches: "-DLIES=1 -DAWAY=1 -DREBUILD_UNREAD", violates: "V5"},
	{name: "written without a mark", model: "repair.pml", switches: "-DCUTS=1 -DUNMARKED", violates: "I4"},
	{name: "recovery takes any copy", model: "repair.pml", switches: "-DCUTS=1 -DROTS=1 -DANY_COPY", violates: "V3"},
	{name: "recovery guesses after a clean stop", model: "repair.pml", switches: "-DN=1 -DROTS=1 -DGUESS", violates: "V4"},
	{name: "receipt for a block that nobody can decide", model: "repair.pml", switches: "-DN=1 -DROTS=1 -DHUSHED", violates: "I4"},
	{name: "limit: rot beside an unflushed write, power cut", model: "repair.pml", switches: "-DROTS=1 -DCUTS=1 -DSTRICT", violates: "V4"},
	{name: "limit: dropped write, engine dies before its flush", model: "repair.pml", switches: "-DLIES=1 -DSTRICT", violates: "V4"},
}
