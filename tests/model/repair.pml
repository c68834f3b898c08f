/* repair.pml - what a block is, where disks rot and drop writes: its checksum on each replica and with the engine, the dirty mark, settling
 * after a death, the verifier, repair, rebuild, and what a receipt then says of each replica.
 *
 * One engine at a time (detach.pml and upgrade.pml are about two), one region of one block. Beside its block a replica has an entry: the
 * checksum of what was written, and a version. In the engine the entry it expects is (eh, ev); the replica's is given with a flush. A
 * block matches an entry where both have the same id; what has rotted is ROT, and matches none.
 *
 * The engine may die between any two steps (DEATHS): the next one attaches warm; or the power fails with it (CUTS): of each replica's block and
 * entry either what was synced is there or what was written, and the next one attaches cold.
 *
 *   bounds : N replicas, W writes, DEATHS, CUTS, ROTS, LIES writes that are dropped and reported as done, AWAY replicas out of reach, DETACH
 *   STRICT : also where no checksum can tell (see recovered)
 *   wrong  : MEND_ANY MEND_NEWEST MEND_UNCHECKED CLEAN_UNREAD CLEAN_FIRST ENTRIES_UNSYNCED FIRST_ENTRY REBUILD_UNREAD UNMARKED ANY_COPY GUESS
 *            ENTRIES_UNREAD MEND_FORGOTTEN HUSHED
 */
#ifndef N
#define N 2
#endif
#ifndef W
#define W 2
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#ifndef CUTS
#define CUTS 0
#endif
#ifndef ROTS
#define ROTS 0
#endif
#ifndef LIES
#define LIES 0
#endif
#ifndef AWAY
#define AWAY 0
#endif
#ifndef DETACH
#define DETACH 1
#endif
/* An assertion, and its label: what Spin prints of it when it is violated. I1 to I8 are DESIGN.md's invariants. */
#define hold(label, what) assert((what) || label == 0)
mtype = { I3, I4, V1, V2, V3, V4, V5, V6 };
#define B(r)     (1<<(r))
#define ALL      (B(N)-1)
#define COUNT(m) (((m)&1) + (((m)>>1)&1) + (((m)>>2)&1) + (((m)>>3)&1))
#define MAJ(m)   (2*COUNT(m) > N)
#define ROT      14                 /* content that nobody wrote */
#define UNSOUND  15                 /* an entry that does not check */
#define NONE     15

typedef Rep {
  bool here;
  byte val, eh, ev;                 /* as a read sees them: the block; the entry, the id it is of and its version */
  byte dur, dh, dv;                 /* on stable media */
  bool dirty; byte sums;            /* durable at once: the mark, and the sum where there is none */
  byte rotten, unsound              /* its block, its entry: 1; and written since: 2, until that is flushed */
};
Rep R[N];
byte isr; bool clean;               /* the configuration in force */
byte rots, lies, away;              /* budgets used */

/* What the guest was told. Its writes come one after the other: their ids only grow. */
byte gw, acked, synced;
byte pending;                       /* a write that a dead engine did not answer */

#define SOUND(i)   (R[i].here && (mem & B(i)) && R[i].val == R[i].eh)
#define KNOWS(i,v) (R[i].here && (mem & B(i)) && R[i].eh == (v))
#define HOLDS(i,v) (R[i].here && (mem & B(i)) && R[i].val == (v))
#if N == 1
#define SOME(p, v) (p(0, v))
#elif N == 2
#define SOME(p, v) (p(0, v) || p(1, v))
#else
#define SOME(p, v) (p(0, v) || p(1, v) || p(2, v))
#endif
#define DURABLE(i,v) ((R[i].dur == (v) || R[i].rotten) && (R[i].dh == (v) || R[i].unsound))   /* it was */
#define OWED(v) ((v) == acked || pending && (v) == pending)          /* what a guest that lives must find */
#define SOUNDFROM(i,v) (SOUND(i) && R[i].val >= (v) && R[i].val <= W)

/* The first member that is there, in r. */
inline first() {
  if
  :: (mem & 1) && R[0].here -> r = 0
#if N > 1
  :: !((mem & 1) && R[0].here) && (mem & 2) && R[1].here -> r = 1
#endif
#if N > 2
  :: !((mem & 1) && R[0].here) && !((mem & 2) && R[1].here) && (mem & 4) && R[2].here -> r = 2
#endif
  :: else -> goto died
  fi }
inline lowest(m, i) {
  if
  :: (m & 1) -> i = 0
  :: !(m & 1) && (m & 2) -> i = 1
  :: !(m & 3) && (m & 4) -> i = 2
  fi }

#define WRITTEN(f) f = (f -> 2 : 0)
#define FSYNC(i)  R[i].dur = R[i].val; R[i].dh = R[i].eh; R[i].dv = R[i].ev; R[i].rotten = R[i].rotten % 2; R[i].unsound = R[i].unsound % 2
/* What a member is asked to do. A disk may drop a write and report it as done. */
inline mark()    { R[r].dirty = 1 }
inline data()    { WRITTEN(R[r].rotten); if :: R[r].val = x :: lies < LIES -> lies++ fi }
inline entry()   { WRITTEN(R[r].unsound); if :: R[r].eh = eh; R[r].ev = ev :: lies < LIES -> lies++ fi }
inline fsync()   { FSYNC(r) }
inline look()    { wrong = wrong || R[r].val != eh }
inline recheck() { if :: R[r].eh == eh && R[r].ev == ev :: else -> rewrote = 1; entry() fi }
inline confirm() { if :: R[r].eh == eh && R[r].ev == ev :: else -> bad = bad | B(r) fi }
#ifdef MEND_FORGOTTEN               /* wrong: a member that does not take a repair is back with what it has */
#define DOUBT skip
#else
#define DOUBT R[r].dirty = 1
#endif
inline repair()  {                  /* and read back */
  if
  :: R[r].val == x
  :: else -> data();
#ifndef MEND_UNCHECKED              /* wrong: it is not */
     if :: R[r].val == x :: else -> bad = bad | B(r); DOUBT fi
#endif
  fi }
inline sum()     { R[r].sums = eh }
inline unmark()  {
  hold(V5, DURABLE(r, eh));          /* what is made clean was read back and is durable */
  R[r].dirty = 0 }
/* One thing at every member. Those that are away are removed from the configuration, in force before this ends. */
#define each(what) \
  todo = mem; bad = 0; \
  do \
  :: atomic { todo -> lowest(todo, r); todo = todo & ~B(r); if :: !R[r].here -> bad = bad | B(r) :: else -> what() fi; r = 0 } \
  :: atomic { deaths < DEATHS -> goto died } \
  :: atomic { !todo -> break } \
  od; \
  exclude()
#if AWAY == 0 && LIES == 0          /* nobody fails */
inline exclude() { skip }
#else
inline exclude() {
  atomic {
    if
    :: bad -> mem = mem & ~bad; bad = 0;
       if
       :: !mem -> goto died
       :: mem && serving -> reach(); if :: MAJ(todo) -> isr = mem; todo = 0 :: else -> goto died fi
       :: else
       fi
    :: else
    fi }
}
#endif
#if AWAY > 0
inline present() { reach(); bad = mem & ~todo; todo = 0; exclude() }     /* a member that cannot be read drops out */
#else
inline present() { skip }
#endif
inline reach() { d_step { todo = 0; for (r : 0 .. N-1) { if :: R[r].here -> todo = todo | B(r) :: else fi } r = 0 } }

/* The engine's entry of the block, where it is not in memory: the first member's, or, where the region is dirty, the newest. */
#ifdef FIRST_ENTRY                  /* wrong: in a dirty region the first member's, too, though no read-back has shown that it took it */
#define NEWEST uns
#else
#define NEWEST marked
#endif
inline load() {
  atomic { if
  :: !page -> present(); eh = UNSOUND; ev = 0; page = 1; differ = 0;
     for (r : 0 .. N-1) {
       if
       :: !(mem & B(r)) || !R[r].here || R[r].eh == UNSOUND
       :: else ->
          if
          :: eh == UNSOUND -> eh = R[r].eh; ev = R[r].ev
          :: eh != UNSOUND && NEWEST ->
             differ = differ || R[r].ev != ev || R[r].eh != eh;
             if :: R[r].ev > ev -> eh = R[r].eh; ev = R[r].ev :: else fi
          :: else
          fi
       fi } r = 0;
     if :: differ -> page = 2; differ = 0 :: else fi
  :: else
  fi } }
/* Which copy is right (quorum.Winner, quorum.Recovered): x is what it holds, NONE where nobody can tell. */
inline expected() { if :: SOME(HOLDS, eh) -> x = eh :: else -> x = NONE fi }
inline matching() {                 /* the newest that matches its own entry; NONE and tie where two of them differ */
  x = NONE; tie = 0; best = 0;
  for (r : 0 .. N-1) {
    if
    :: SOUND(r) && (x == NONE || R[r].ev > best) -> x = R[r].val; best = R[r].ev; tie = 0
    :: SOUND(r) && x != NONE && R[r].ev == best && R[r].val != x -> tie = 1
    :: else
    fi } r = 0; best = 0;
  if :: tie -> x = NONE :: else fi }
inline majority() {
  if
  :: x == NONE && !tie && N > 1 && COUNT(mem) > 1 && R[0].val == R[N-1].val && HOLDS(0, R[0].val) && HOLDS(N-1, R[0].val) -> x = R[0].val
#if N == 3
  :: x == NONE && !tie && COUNT(mem) > 1 && R[0].val == R[1].val && HOLDS(0, R[0].val) && HOLDS(1, R[0].val) -> x = R[0].val
  :: x == NONE && !tie && COUNT(mem) > 1 && R[1].val == R[2].val && HOLDS(1, R[1].val) && HOLDS(2, R[1].val) -> x = R[1].val
#endif
  :: else
  fi }
inline source() { if :: x == NONE && !tie -> first(); x = R[r].val; r = 0 :: else fi }

/* Settle: decide what an unsettled block is, make all members that, and expect it from then on. */
inline settle() {
  if
  :: uns -> load();
     atomic { present();
#ifdef ANY_COPY                     /* wrong: the first copy that is there */
       first(); x = R[r].val; r = 0;
#elif defined(GUESS)                /* wrong: after a clean stop as well, what no checksum knows is taken for an unflushed write */
       matching(); majority(); source();
#else
       if
       :: unflushed -> matching(); majority(); source()
       :: !unflushed && eh != UNSOUND -> expected()
       :: !unflushed && eh == UNSOUND -> matching(); majority()         /* no entry is sound: the code has none to expect either */
       fi;
#endif
       tie = 0; recovered() }
     if
     :: x == NONE -> unresolved = 1
     :: x != NONE -> each(data);
        atomic { if :: x != eh || page == 0 -> eh = x; seq++; ev = seq; page = 2 :: else fi;
          uns = 0; written = 1; x = 0 }
     fi; x = 0
  :: else
  fi }
/* What a recovery may come to. Nothing can tell an unflushed write from rot where no copy matches its entry: then, as STRICT shows, any copy serves. */
inline recovered() {
  hold(V4, x == NONE || unflushed || x == synced);                        /* after a clean stop nothing is guessed */
  if
  :: SOME(SOUNDFROM, synced) -> hold(V3, x >= synced && x <= gw)          /* the sound copy is chosen where there is one */
  :: else
  fi;
  hold(I3, !warm || rots || lies || OWED(x));                             /* a warm take-over loses no acknowledged write */
#ifdef STRICT
  hold(V4, x == NONE || !warm && x >= synced && x <= gw || warm && OWED(x));
#endif
  if :: x != NONE && (x < synced || x > gw || warm && !OWED(x)) -> goto lost :: else fi }
/* Repair, by what the engine expects. */
inline mend() {
  atomic {
#ifdef MEND_ANY                     /* wrong: from whichever copy is at hand */
    first(); x = R[r].val; r = 0;
#elif defined(MEND_NEWEST)          /* wrong: a copy that matches its own entry is good enough, though the engine knows better */
    matching();
    if :: x == NONE -> expected() :: else fi;
#else
    if
    :: eh != UNSOUND -> expected()
    :: eh == UNSOUND -> matching(); majority();
       if :: x != NONE -> eh = x; seq++; ev = seq; page = 2 :: else fi
    fi;
#endif
    tie = 0;
    hold(V1, x == NONE || x == acked || eh == UNSOUND);  /* repair makes nothing old */
    hold(V2, x != NONE || !SOME(HOLDS, acked) || !SOME(KNOWS, acked));      /* what a member holds, and one can tell, is not refused */
    if :: x == NONE -> unresolved = 1 :: else fi }
  if :: x != NONE -> each(repair) :: else fi;
  x = 0 }
inline flush() {
  if :: page == 2 -> page = 1; each(entry) :: else fi;
  each(fsync) }
#ifdef CLEAN_UNREAD                 /* wrong: nothing is read back before it is made clean */
#define READS_BACK false
#else
#define READS_BACK written
#endif
#ifdef ENTRIES_UNSYNCED             /* wrong: entries that were put right are not flushed */
#define CHANGED wrong
#else
#define CHANGED (wrong || rewrote)
#endif
#ifdef REBUILD_UNREAD               /* wrong: what a rebuild copied is not read back */
#define TOOK(t) true
#else
#define TOOK(t) (R[t].val == eh && R[t].eh == eh)
#endif

/* What an engine does, one at a time. */
#define ATTACH   1                  /* cold: settle, and flush, before anything is served */
#define SYNC     2                  /* the guest's flush */
#define READ     3                  /* a read, or a scrub: the block is compared on every member */
#define VERIFY   4                  /* of a quiet region, to make it clean */
#define REBUILD  5                  /* of replica t */
#define STOP     6                  /* a detach: refuse writes, and flush */
#define EVIDENCE 7                  /* settle, read back, make clean */

/* Replica t becomes what the members are: it is copied where it says that it was being written, or its sum is another. */
inline copy(t) {
  if
  :: R[t].dirty || R[t].sums != best ->
     WRITTEN(R[t].rotten); WRITTEN(R[t].unsound);
     if :: R[t].val = eh :: lies < LIES -> lies++ fi;
     if :: R[t].eh = eh; R[t].ev = ev :: lies < LIES -> lies++ fi;
     FSYNC(t)
  :: else ->
     FSYNC(t);
     hold(V6, R[t].dur == acked || R[t].rotten)          /* what is not copied is the same */
  fi; best = 0 }
inline admit(t) {
  if
  :: TOOK(t) && MAJ(todo) && R[t].here ->
     if
     :: !marked ->
        R[t].sums = eh;
        hold(V5, DURABLE(t, eh));
        R[t].dirty = 0
     :: else
     fi;
     mem = mem | B(t); isr = mem
  :: else
  fi }
inline gone() {                     /* what dies with an engine */
  mem = 0; eh = 0; ev = 0; page = 0; x = 0; r = 0; todo = 0; bad = 0; best = 0; job = 0; t = 0; uns = 0; marked = 0; written = 0; unflushed = 0;
  serving = 0; wrong = 0; rewrote = 0; differ = 0; tie = 0; unresolved = 0 }

active proctype Engine() {
  byte mem, eh, ev, page, x, r, todo, bad, best, job, t, seq, deaths, cuts, detaches;
  bool guest, uns, marked, written, unflushed, warm, serving, wrong, rewrote, differ, tie, unresolved;

  atomic { isr = ALL; mem = ALL; guest = 1; serving = 1;
    for (r : 0 .. N-1) { R[r].here = 1 } r = 0; goto serve }

attach:
  atomic { reach(); mem = isr & todo;
    if :: MAJ(todo) && mem -> todo = 0 :: else -> goto lost fi;
    unflushed = !clean;
    for (r : 0 .. N-1) { if :: (mem & B(r)) && R[r].dirty -> marked = 1 :: else fi }
    if                                                 /* cold, the sums are compared, too; warm later, and not here */
    :: !warm && !marked -> first(); best = R[r].sums;
       for (r : 0 .. N-1) { if :: (mem & B(r)) && R[r].sums != best -> marked = 1 :: else fi } best = 0
    :: else
    fi; r = 0 }
  if :: marked -> each(mark); uns = 1 :: else fi;
  if :: !warm && uns -> job = ATTACH; goto work :: else fi;
attached:
  atomic { reach(); if :: MAJ(todo) && !unresolved -> todo = 0 :: else -> goto lost fi;
    isr = mem; clean = 0; serving = 1;
    if
    :: !warm -> if :: marked -> acked = eh :: else fi;                  /* what the guest finds is what counts from now on */
       synced = acked; pending = 0; guest = 1
    :: else
    fi }

endserve:
serve:
  do
  :: atomic { !unresolved && (pending || gw < W) -> if :: pending -> x = pending :: else -> gw++; x = gw; pending = gw fi }
#ifndef UNMARKED                    /* wrong: nothing says that the region is being written */
     if :: !marked -> each(mark); marked = 1 :: else fi;
#endif
     each(data);
     atomic { load(); eh = x; seq++; ev = seq; page = 2; uns = 0; written = 1; marked = 1; acked = x; pending = 0; x = 0 }
  :: atomic { !unresolved && !pending && page == 1 -> page = 0 }        /* the entry is evicted */
  :: atomic { !unresolved && !pending ->
       if
       :: page == 2 -> job = SYNC
       :: job = READ
       :: marked -> job = VERIFY
#if AWAY > 0
       :: !(mem & B(0)) && R[0].here -> job = REBUILD; t = 0; R[t].dirty = R[t].dirty || marked
       :: !(mem & B(N-1)) && R[N-1].here -> job = REBUILD; t = N-1; R[t].dirty = R[t].dirty || marked
#endif
       :: detaches < DETACH -> detaches++; job = STOP
       fi; break }
  :: atomic { deaths < DEATHS -> goto died }
  od;

work:
  if :: job != SYNC && job != STOP -> settle() :: else fi;
  if
  :: job == READ || job == REBUILD
  :: else -> flush(); if :: job != ATTACH -> synced = acked :: else fi
  fi;
  atomic { if
  :: job == ATTACH -> job = 0; goto attached
  :: job == SYNC -> job = 0; goto serve
  :: job == STOP -> if :: !uns -> clean = 1 :: else fi; job = EVIDENCE; goto work
  :: job == EVIDENCE && !unresolved -> clean = 1
  :: else
  fi }
  if
  :: unresolved
  :: else -> load();
     if
     :: job == READ || job == REBUILD || READS_BACK -> each(look);
        if :: job == VERIFY || job == EVIDENCE -> each(recheck) :: else fi;
        if :: wrong -> mend() :: else fi;
        if :: CHANGED -> flush() :: else fi;
#ifndef ENTRIES_UNREAD              /* wrong: entries that were put right are not read back */
        if :: rewrote -> each(confirm) :: else fi
#endif
     :: else
     fi
  fi;
  atomic { wrong = 0; rewrote = 0; load();
    if
    :: unresolved
    :: else ->
       hold(V1, eh == acked || eh == UNSOUND);            /* what is read is what was written */
       if
       :: job == REBUILD -> first(); best = R[r].sums; r = 0; copy(t); reach(); admit(t); todo = 0; t = 0
       :: job == VERIFY || job == EVIDENCE -> written = 0
       :: else
       fi
    fi }
  if
  :: !unresolved && marked && (job == VERIFY || job == EVIDENCE) ->
#ifdef CLEAN_FIRST                  /* wrong: the marks go before the sums are there */
     each(unmark); each(sum);
#else
     each(sum); each(unmark);
#endif
     marked = 0
  :: else
  fi;
  atomic { if :: job != EVIDENCE -> job = 0; goto serve :: else fi;
#ifndef HUSHED                      /* wrong: a detach with a block that nobody can decide */
    if :: unresolved -> goto lost :: else fi;          /* DATA_LOSS: refused, and the volume quarantined */
#endif
    for (r : 0 .. N-1) {                               /* I4 whoever attests holds it on stable media */
      hold(I4, !(mem & B(r)) || !R[r].here || DURABLE(r, acked) && R[r].sums == acked && !R[r].dirty)
    }
    gone(); guest = 0; warm = 0; goto attach }

died: atomic {
    if :: deaths < DEATHS -> deaths++ :: else fi; gone();
    for (r : 0 .. N-1) { R[r].rotten = (R[r].rotten -> 1 : 0); R[r].unsound = (R[r].unsound -> 1 : 0) } r = 0;
    if
    :: warm = guest                                    /* the engine alone */
    :: cuts < CUTS -> cuts++; warm = 0; guest = 0;     /* with all of the machine's power */
       for (r : 0 .. N-1) {
         if :: R[r].dur = R[r].val :: true fi; R[r].val = R[r].dur;
         if :: R[r].dh = R[r].eh; R[r].dv = R[r].ev :: true fi; R[r].eh = R[r].dh; R[r].ev = R[r].dv } r = 0
    fi;
    goto attach }
lost: atomic { gone(); warm = 0; guest = 0 }
}

inline rot(i) { atomic { rots < ROTS -> rots++;
  if :: R[i].val = ROT; R[i].dur = ROT; R[i].rotten = 1 :: R[i].eh = UNSOUND; R[i].dh = UNSOUND; R[i].unsound = 1 fi } }
inline leave(i) { atomic { away < AWAY && R[i].here -> away++; R[i].here = 0 } }
inline back(i) { atomic { !R[i].here -> R[i].here = 1 } }
active proctype Faults() {
end: do
  :: rot(0) :: leave(0) :: back(0)
#if N > 1
  :: rot(N-1) :: leave(N-1) :: back(N-1)
#endif
  od
}
