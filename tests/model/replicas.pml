/* replicas.pml - the replicas of one volume, and how an engine speaks to them. Included by detach.pml and upgrade.pml.
 *
 * N replicas, which are also the voters. An engine has an epoch; it can stop for ever at any step (a crash) or go on late (a zombie),
 * since every interleaving is searched; where LOCKED is set the next one comes when it is dead. What a replica does in one step is one atomic step here: it checks the epoch and the session,
 * acts, and what it keeps durably is durable before it answers. In the code that is the lock on the replica, which its last write holds.
 *
 * One block. A write carries an id; 0 is what was there before.
 */
#ifndef N
#define N 3
#endif
#ifndef CR
#define CR 1                        /* replicas' power cuts: each loses that cache */
#endif
#ifndef NET
#define NET 0                       /* lost replies and unreachable replicas */
#endif
#ifndef LIES
#define LIES 0                      /* writes that a disk drops and reports as done */
#endif

/* An assertion, and its label: what Spin prints of it when it is violated. I1 to I8 are DESIGN.md's invariants. */
#define hold(label, what) assert((what) || label == 0)
mtype = { I1, I2, I3, I4, I5, I6, I8, R1 };

#define B(r)     (1<<(r))
#define ALL      (B(N)-1)
#define COUNT(m) (((m)&1) + (((m)>>1)&1) + (((m)>>2)&1) + (((m)>>3)&1) + (((m)>>4)&1))
#ifdef HALF
#define MAJ(m)   (2*COUNT(m) >= N)  /* wrong: of an even number two such groups need not meet */
#else
#define MAJ(m)   (2*COUNT(m) > N)
#endif
#define CN(e,k)  ((e)*8+(k))        /* a configuration's place in their order: its epoch, then its step */
#define MAX(a,b) ((a) > (b) -> (a) : (b))

typedef Rep {
  bool up; byte ses;                /* ses: the session; another one after each restart */
  byte prom, cn, isr;               /* durable: the promised epoch; the newest configuration accepted, and its members */
  byte val, dur;                    /* the block in the cache, and on stable media */
  bool lossy                        /* durable: lost its cache while a session was open, and did not join anew since */
#ifdef GO_ON
  ; bool open                       /* durable: a session is open on it */
#endif
};
Rep R[N];
byte lies, net;                     /* budgets used */

inline any(m, i) {
  if
  :: (m & 1) -> i = 0
  :: (m & 2) -> i = 1
  :: (m & 4) -> i = 2
  :: (m & 8) -> i = 3
  :: (m & 16) -> i = 4
  fi }
#ifdef FIX                          /* replicas are visited in one order: fewer states */
inline pick(m, i) {
  if
  :: (m & 1) -> i = 0
  :: !(m & 1) && (m & 2) -> i = 1
  :: !(m & 3) && (m & 4) -> i = 2
  :: !(m & 7) && (m & 8) -> i = 3
  :: !(m & 15) && (m & 16) -> i = 4
  fi }
#else
inline pick(m, i) { any(m, i) }
#endif

#ifdef LOCKED                       /* the locks of an engine end with it: the next one comes when it is dead */
#define DIES :: goto dead
#else
#define DIES
#endif

#define FENCED(r) (R[r].up && R[r].prom > ep)
#ifdef NOSESSION
#define MINE(r) (R[r].up && R[r].prom <= ep)
#else
#define MINE(r) (R[r].up && R[r].prom <= ep && R[r].ses == ses[r] && WELL(r))
#endif

/* Warm, what was acknowledged and not flushed counts, and only who kept its cache has that. */
#ifdef LOSSYSRC
#define KEPT(r) true
#else
#define KEPT(r) (!R[r].lossy)
#endif

/* What an engine has beside what its model adds. x is what it takes the block to be. */
#define ENGINE byte isr, k, x, r, src, todo, acc, bad, bcn; byte ses[N]
/* An engine that is gone looks like any other. */
inline forget() { d_step { isr = 0; k = 0; x = 0; r = 0; src = 0; todo = 0; acc = 0; bad = 0; bcn = 0;
  ses[0] = 0;
#if N > 1
  ses[1] = 0;
#endif
#if N > 2
  ses[2] = 0;
#endif
#if N > 3
  ses[3] = 0;
#endif
#if N > 4
  ses[4] = 0;
#endif
} }

#ifdef GO_ON
#include "doubt.pml"
#else
#define WELL(r) true
#define WRITERS isr
/* Put the configuration (ep, k+1, members) in force: durable at a majority before anybody relies on it. seal = 1 ends the epoch with it. */
inline commit(members, seal) {
  k++; acc = 0; todo = ALL;
  do
  :: atomic { !MAJ(acc) && todo -> pick(todo, r); todo = todo & ~B(r);
       if
       :: FENCED(r) -> goto dead
       :: R[r].up && R[r].prom <= ep ->
          R[r].prom = ep + seal; R[r].cn = CN(ep,k); R[r].isr = members;
          if :: acc = acc | B(r) :: net < NET -> net++ fi         /* accepted, but the reply is lost */
       :: !R[r].up
       fi; r = 0 }
  :: atomic { !MAJ(acc) && !todo -> goto dead }                   /* no majority: nothing is acknowledged */
  :: atomic { MAJ(acc) -> acc = 0; todo = 0; break }
  od
}

inline exclude() {                  /* the removal of those in bad is in force before anything is acknowledged */
  if
  :: atomic { bad -> isr = isr & ~bad; bad = 0; if :: !isr -> goto dead :: else fi }
     commit(isr, 0)
  :: !bad
  fi
}
#endif

/* What every member is asked to do. */
#define WRITE    1                  /* take x */
#define FLUSH    2                  /* bring the block to stable media */
#define READBACK 3                  /* compare it with x: that shows content, not durability, since a cache may answer */
inline allisr(op) {                 /* whoever did not do it is in bad */
  todo = WRITERS; bad = 0;
  do
  DIES
  :: atomic { todo -> pick(todo, r); todo = todo & ~B(r);
       if
#ifdef ZOMBIE_WRITES                                              /* wrong: a write of a dead engine that is still on its way lands */
       :: FENCED(r) && op == WRITE -> R[r].val = x
#endif
       :: FENCED(r) -> goto dead
       :: MINE(r) ->
          if
          :: op == WRITE -> R[r].val = x
          :: op == WRITE && lies < LIES -> lies++
          :: op == FLUSH -> R[r].dur = R[r].val
          :: op == READBACK && R[r].val == x
          :: op == READBACK && R[r].val != x -> bad = bad | B(r)
          fi;
          if :: net < NET -> net++; bad = bad | B(r) :: true fi   /* done, but the reply is lost */
       :: !FENCED(r) && !MINE(r) -> bad = bad | B(r)              /* down, or restarted, and its cache lost */
       :: MINE(r) && net < NET -> net++; bad = bad | B(r)         /* unreachable */
       fi; r = 0 }
  :: atomic { !todo -> break }
  od
}
/* Have every replica that is reached promise ep, and learn the newest configuration: a majority of all, and a member of it that is usable. */
inline fence(usable) {
  todo = ALL;
  do
  DIES
  :: atomic { todo -> pick(todo, r); todo = todo & ~B(r);
       if
       :: R[r].up && R[r].prom >= ep -> goto dead
       :: R[r].up && R[r].prom < ep ->
#ifndef NOFENCE_ATTACH
          R[r].prom = ep;
#endif
          ses[r] = R[r].ses; acc = acc | B(r);
#ifdef WARM
          if :: KEPT(r) -> bad = bad | B(r) :: else fi;            /* bad: those that kept their caches, for once */
#endif
          if :: R[r].cn > bcn -> bcn = R[r].cn; isr = R[r].isr :: else fi
       :: !R[r].up
       fi; r = 0 }
  :: atomic { MAJ(acc) && (acc & usable) -> break }
  :: atomic { !todo && !(MAJ(acc) && (acc & usable)) -> goto dead }
  od
}
