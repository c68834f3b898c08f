/* upgrade.pml - a device that outlives its engine: requests that the old engine took and did not answer are asked for again, and blocks
 * that the old one left unsettled are settled when they are first used. Membership, fence and exclusion are those of replicas.pml.
 *
 * The device is the kernel's: it hands requests to the engine that serves it, and takes answers from that one. Its guest has up to W writes of the
 * block under way at once, a read and a flush. An engine takes requests, does those in hand in any order, answers them, and can stop for ever
 * anywhere: killed, yielded, or running on behind its successor's fence. Engines have the epochs 2, 4, .. and attach warm; COLD: the
 * last one finds the guest dead.
 *
 * What a read may return: nothing that an acknowledged write, or an earlier read's, has overtaken. Writes that are under way at the same time
 * may come in any order, so before[w] are the values that were acknowledged when w was issued: those w overtakes.
 *
 * Settling picks any member's copy here, whichever the code's rules would pick (quorum.Recovered): so entries need not be modelled.
 *
 *   bounds : N replicas, W writes, RDS reads, FLS flushes, CR power cuts, NET lost replies, ENG engines, RJ rebuilds, HAND requests in hand
 *   wrong  : REPLAY_DROPPED REPLAY_ASSUMED REPLAY_EARLY YIELD_BUSY LATE_ANSWER ZOMBIE_WRITES LOSSYSRC NOSESSION NO_SETTLE SETTLE_UNLOCKED
 *            SETTLE_ALONE FLUSH_SETTLED ACK_EARLY
 */
#ifndef W
#define W 2
#endif
#ifndef RDS
#define RDS 1
#endif
#ifndef FLS
#define FLS 0
#endif
#ifndef ENG
#define ENG 2
#endif
#ifndef RJ
#define RJ 0
#endif
#ifndef HAND
#define HAND 2
#endif
#define WARM
#ifdef REPLAY_EARLY
#define NOFENCE_ATTACH
#endif
#include "replicas.pml"

#define READ     B(W+1)             /* requests are bits: 1..W are the writes */
#define SYNC     B(W+2)
#define BITS(m)  (COUNT(m) + (((m)>>5)&1))
byte queued, taken;                 /* requests the device has and nobody took; those that the engine serving it took */
byte dev;                           /* the epoch of the engine that serves it; 0: it yielded */
byte gw, rds, fls, rj;              /* writes issued; budgets used */
bool dead_guest;

byte before[W+1];                   /* of each write: the values it overtakes */
byte known;                         /* values acknowledged */
byte stale;                         /* values overtaken: no later read returns one */
byte forbidden;                     /* those that were stale when the read was issued */
byte covered, gone;                 /* when the flush was issued; what no attach may find, ever */

inline overtake(v) { known = known | B(v); stale = stale | before[v] }

proctype Guest() {
end: do
  :: atomic { !dead_guest && gw < W -> gw++; before[gw] = known | stale; queued = queued | B(gw) }
  :: atomic { !dead_guest && rds < RDS && !((queued | taken) & READ) -> rds++; forbidden = stale; queued = queued | READ }
  :: atomic { !dead_guest && fls < FLS && !((queued | taken) & SYNC) -> fls++; covered = stale; queued = queued | SYNC }
  od
}

#ifdef LATE_ANSWER                  /* wrong: an answer counts, whoever it comes from */
#define ANSWERED(q) ((queued | taken) & (q))
#else                               /* asked for again it is another request, that only the next engine can answer */
#define ANSWERED(q) (dev == ep && (taken & (q)))
#endif
#ifdef YIELD_BUSY                   /* wrong: they are not */
#define DRAINED true
#else
#define DRAINED (!hand)
#endif
inline done(q) { queued = queued & ~(q); taken = taken & ~(q) }

/* The block becomes what some member holds, on every member. Nothing else of this engine touches it meanwhile. */
inline choose(v) {                  /* v: any member's copy; members that fail drop out */
  do
  :: atomic { any(isr, src);
       if
       :: FENCED(src) -> goto dead
       :: MINE(src) -> v = R[src].val; src = 0; break
       :: !FENCED(src) && !MINE(src) -> bad = B(src); src = 0
       fi }
     exclude()
  od
}
inline conform() {
#ifndef SETTLE_ALONE                /* wrong: settled is what one member was read from, whatever the others hold */
  allisr(WRITE); exclude();
#endif
  atomic { uns = 0; exp = x; x = 0 }
}

proctype Engine(byte ep) {
  ENGINE; byte hand, exp, q; bool uns;
#ifdef SETTLE_UNLOCKED
  bool chosen; byte sv;
#endif

  if
  :: ep == 2 -> atomic { isr = ALL; k = 1 }; goto serve
#ifdef COLD
  :: ep == 2*ENG -> atomic { dead_guest = 1; queued = 0; taken = 0; dev = 0 };
     fence(isr);
     atomic { isr = isr & acc; for (r : 0 .. N-1) {
       hold(I1, !(isr & B(r)) || !R[r].up || !(gone & B(R[r].val))) }     /* nothing that was flushed is lost, whichever is settled on */
       goto dead }
#endif
  :: else
  fi;
  fence(isr & bad);
  atomic { isr = isr & acc & bad; acc = 0; bad = 0; bcn = 0; todo = 0 }
#ifndef REPLAY_EARLY                /* wrong: what is asked for again is done before the old engine is shut out */
  commit(isr, 0);
#endif
  atomic {                                             /* the device is taken over: the unanswered requests are asked for again */
    if :: dead_guest || dev > ep -> goto dead :: else fi;
#ifdef REPLAY_DROPPED
    skip;
#elif defined(REPLAY_ASSUMED)                          /* wrong: what the old engine took it has done, they say */
    for (q : 1 .. W) { if :: (taken & B(q)) -> overtake(q) :: else fi }
    q = 0; queued = queued | (taken & (READ | SYNC)); taken = 0;
#else
    if :: dev -> queued = queued | taken; taken = 0 :: else fi;         /* one that has yielded has nothing in hand */
#endif
    hold(R1, !taken);                                    /* no request is forgotten */
    dev = ep; uns = 1 }

endserve:
serve:
  do
  :: atomic { dev == ep && queued && BITS(hand) < HAND ->               /* take a request */
       if
       :: (queued & B(1)) -> q = B(1)
       :: (queued & B(2)) -> q = B(2)
       :: (queued & B(3)) -> q = B(3)
       :: (queued & B(4)) -> q = B(4)
       :: (queued & B(5)) -> q = B(5)
       fi;
       queued = queued & ~q; taken = taken | q; hand = hand | q; q = 0 }
  :: atomic { hand & ~(READ | SYNC) ->                 /* a write of the whole block: it is settled when every member has it */
       if
       :: (hand & B(1)) -> x = 1
       :: W > 1 && (hand & B(2)) -> x = 2
       :: W > 2 && (hand & B(3)) -> x = 3
       fi; hand = hand & ~B(x) }
     allisr(WRITE);
#ifndef ACK_EARLY
     exclude();
#endif
     atomic { uns = 0; exp = x;
       if :: ANSWERED(B(x)) -> done(B(x)); overtake(x) :: else fi; x = 0 }
#ifdef ACK_EARLY
     exclude();
#endif
  :: atomic { (hand & READ) -> hand = hand & ~READ }
#ifndef NO_SETTLE
     if
     :: uns -> choose(x); conform()
     :: !uns
     fi;
#endif
     choose(x);
     atomic {
#if !defined(NO_SETTLE) && !defined(SETTLE_ALONE)
       hold(I8, x == exp);                               /* members are identical where a block is settled */
#endif
       if
       :: ANSWERED(READ) -> done(READ);
          hold(I3, !(forbidden & B(x)));                 /* a read returns nothing that was overtaken */
          stale = stale | before[x]
       :: else
       fi; x = 0 }
  :: atomic { (hand & SYNC) -> hand = hand & ~SYNC }
#ifdef FLUSH_SETTLED
     if
     :: uns                                            /* wrong: what is not settled is left out */
     :: !uns -> allisr(FLUSH)
     fi;
#else
     allisr(FLUSH);
#endif
#ifndef ACK_EARLY
     exclude();
#endif
     atomic { if :: ANSWERED(SYNC) -> done(SYNC); gone = gone | covered :: else fi }
#ifdef ACK_EARLY
     exclude();
#endif
#ifdef SETTLE_UNLOCKED                                 /* wrong: settling in the background, a write comes between */
  :: atomic { uns && !chosen -> chosen = 1 }
     choose(sv)
  :: atomic { chosen -> x = sv; chosen = 0; sv = 0 }
     conform()
#else
  :: uns -> choose(x); conform()                       /* in the background */
#endif
  :: atomic { rj < RJ && !uns && isr != ALL -> rj++; acc = ALL & ~isr; any(acc, src); acc = 0;
       if                                              /* a rebuild: the copy durable first, then a member */
       :: FENCED(src) -> goto dead
       :: R[src].up && R[src].prom <= ep ->
          R[src].prom = ep; R[src].val = exp; R[src].dur = exp; R[src].lossy = 0; ses[src] = R[src].ses; isr = isr | B(src)
       :: !R[src].up
       fi; src = 0 }
     commit(isr, 0)
  :: atomic { dev == ep && DRAINED -> dev = 0; goto dead }              /* it yields: requests are drained */
  od;
dead: atomic { forget(); hand = 0; exp = 0; q = 0; uns = 0
#ifdef SETTLE_UNLOCKED
  ; chosen = 0; sv = 0
#endif
  }
}

inline crash(i) { atomic { c < CR && R[i].up -> c++; R[i].up = 0; R[i].val = R[i].dur; R[i].ses++; R[i].lossy = 1 } }
inline comeback(i) { atomic { !R[i].up -> R[i].up = 1 } }
proctype Faults() {
  byte c;
end: do
  :: crash(0) :: comeback(0)
#if N > 1
  :: crash(1) :: comeback(1)
#endif
#if N > 2
  :: crash(2) :: comeback(2)
#endif
#if N > 3
  :: crash(3) :: comeback(3)
#endif
  od
}

init {
  byte i;
  atomic {
    for (i : 0 .. N-1) { R[i].up = 1; R[i].prom = 2; R[i].cn = CN(2,1); R[i].isr = ALL }
    i = 0; known = B(0); dev = 2;
    run Guest(); run Engine(2); run Engine(4);
#if ENG > 2
    run Engine(6);
#endif
    run Faults()
  }
}
