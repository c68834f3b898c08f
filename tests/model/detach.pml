/* detach.pml - one writer at a time, and what it may say: epochs and their fence, configurations at a majority, replicas with volatile
 * caches, flush, exclusion, rebuild, and the detach with its flush, read-back and seal.
 *
 * ENG engines with the epochs 2, 4, .. run beside each other. A later one is the next node's, the successor in an upgrade, or the gate's in
 * a dead writer's place: all do the same. Ids of writes only grow, so that "id < x" is "lost x".
 *
 *   bounds : N replicas, W writes, CR power cuts, NET lost replies, LIES dropped writes, RJ rebuilds, ENG engines
 *   start  : PRE engine 2 is attached, with MEMBERS in sync and all but AWAY there;  GATED the next engine comes after a receipt only
 *   order  : FIX replicas are visited in one order;  LOCKED engines come one after the other, when the one before is dead, at whatever step
 *   WARM   : the guest outlives the engine (crash, upgrade): acknowledged writes count, flushed or not
 *   GO_ON  : an engine goes on where a proposal finds no majority (doubt.pml; the last four of the wrong ones are its), FAILS times
 *   wrong  : ACK_EARLY NOFENCE_DETACH NOFENCE_ATTACH ANYSRC NOFLUSH NOSESSION AMNESIA NOVERIFY LOSSYSRC HALF
 *            DOUBT_FORGOTTEN TOLD_TO_STAY UNTOLD CLOSED_EARLY
 */
#ifndef W
#define W 2
#endif
#ifndef RJ
#define RJ 0
#endif
#ifndef ENG
#define ENG 2
#endif
#include "replicas.pml"
#ifndef MEMBERS
#define MEMBERS ALL
#endif
#ifndef AWAY
#define AWAY 0
#endif
#ifdef GO_ON
#define LOSES(i) R[i].lossy = R[i].lossy || R[i].open
#else
#define LOSES(i) R[i].lossy = 1
#define GOING
#endif
#ifdef WARM
#define COUNTS(r) KEPT(r)
#else
#define COUNTS(r) true
#endif

#ifdef LOCKED
byte over;                          /* how many engines are dead */
#endif
byte gw, rj;                        /* ids given out; budget used */
byte acked;                         /* the newest id that the guest was told is taken (volatile) */
byte synced;                        /* the newest id that anybody was told is stable */
byte hiEp, hiBase;                  /* the newest attach that was completed, and the id it found */
byte rcEp, rcVal;                   /* the newest receipt, and the id it covers */

inline told_volatile() {
#ifdef WARM
  atomic { hold(I5, !(hiEp > ep) || x <= hiBase);        /* nothing is confirmed behind a newer attach */
    acked = MAX(acked, x) }
#endif
  skip }
inline told_stable() { atomic {
  hold(I5, !(hiEp > ep) || x <= hiBase);
  hold(I6, !(rcEp > ep) || x <= rcVal);                  /* nothing is confirmed behind a receipt */
  synced = MAX(synced, x); fl = x } }

proctype Engine(byte ep) {
  ENGINE; byte fl;                                     /* fl: the newest id that was flushed */
  GOING

#ifdef LOCKED
endlocked: over == ep/2 - 1;
#endif
#ifdef GATED
endgate: if :: ep == 2 || rcEp > 0 fi;
#endif
#ifdef PRE
  if :: ep == 2 -> atomic { isr = MEMBERS; k = 1 }; goto serve :: else fi;
#endif
#ifdef ANYSRC
  fence(acc);
  atomic { any(acc, src); bad = 0 }                    /* wrong: whoever is there, whatever the newest configuration says */
#elif defined(WARM)
  fence(isr & bad);
  atomic { bad = acc & isr & bad; any(bad, src); bad = 0 }
#else
  fence(isr);
  atomic { bad = acc & isr; any(bad, src); bad = 0 }
#endif
  ;
  atomic {                                             /* recover: the others become what the source is, durably */
    if
    :: R[src].up && R[src].prom <= ep && COUNTS(src) ->
       x = R[src].val; R[src].lossy = 0; R[src].dur = x; ses[src] = R[src].ses; isr = B(src); todo = acc & ~B(src)
    :: else -> goto dead
    fi; acc = 0; bcn = 0; src = 0 }
  do
  DIES
  :: atomic { todo -> pick(todo, r); todo = todo & ~B(r);
       if
       :: FENCED(r) -> goto dead
       :: R[r].up && R[r].prom <= ep -> R[r].val = x; R[r].dur = x; R[r].lossy = 0; ses[r] = R[r].ses; isr = isr | B(r)
       :: !R[r].up
       :: R[r].up && net < NET -> net++
       fi; r = 0 }
  :: atomic { !todo -> break }
  od;
  commit(isr, 0);
  atomic {
    if
    :: ep > hiEp ->
       hold(I1, x >= synced);                            /* an attach finds everything that was reported stable */
#ifdef WARM
       hold(I3, x >= acked);                             /* a warm one also everything acknowledged */
#endif
       hold(I2, x >= rcVal);                             /* and everything a receipt covers */
       hiEp = ep; hiBase = x; synced = MAX(synced, x)
    :: else
    fi; fl = x }

serve:
  do
  DIES
  :: atomic { gw < W -> gw++; x = gw }                 /* a write */
     allisr(WRITE); exclude(); told_volatile()
  :: x != fl ->                                        /* a flush */
     allisr(FLUSH);
#ifdef ACK_EARLY
     told_stable(); exclude()
#else
     exclude(); told_stable()
#endif
#ifdef GO_ON
  :: atomic { isr != ALL -> acc = ALL & ~isr; any(acc, r); acc = 0;    /* a voter is back */
       if
       :: FENCED(r) -> goto dead
       :: R[r].up && R[r].prom <= ep && R[r].cn != CN(ep,k) -> tell(r)
       :: else
       fi; r = 0 }
  :: atomic { rj < RJ && isr != ALL -> rj++; acc = ALL & ~isr; pick(acc, r); acc = 0 }
     rebuild()
#else
  :: atomic { rj < RJ && isr != ALL -> rj++; acc = ALL & ~isr; pick(acc, r); acc = 0;
       if                                              /* a rebuild: the copy durable first, then a member */
       :: FENCED(r) -> goto dead
       :: R[r].up && R[r].prom <= ep ->
          R[r].prom = ep; R[r].val = x; R[r].dur = x; R[r].lossy = 0; ses[r] = R[r].ses; isr = isr | B(r)
       :: !R[r].up
       fi; r = 0 }
     commit(isr, 0)
#endif
  :: break                                             /* a detach: no request comes any more */
  od;

#ifndef NOFLUSH
  allisr(FLUSH); exclude();
#endif
#ifndef NOVERIFY
  allisr(READBACK); exclude();
#endif
#ifndef NOFENCE_DETACH
  commit(isr, 1);
#endif
  atomic {
    hold(I5, !(hiEp > ep) || x <= hiBase);               /* the receipt itself */
    if
    :: ep > rcEp ->
#if LIES > 0
       for (r : 0 .. N-1) {
         hold(I4, !(isr & B(r)) || R[r].dur == x || R[r].prom > ep + 1) }   /* whoever attests holds it on stable media */
#endif
       rcEp = ep; rcVal = x; synced = MAX(synced, x)
    :: else
    fi }
#ifdef NOFENCE_DETACH
  if :: gw < W -> atomic { gw++; x = gw }              /* a straggler of the same epoch behind the receipt */
        allisr(WRITE); allisr(FLUSH);
        atomic { hold(I6, rcEp != ep || x <= rcVal) }
  :: true fi;
#endif
dead: atomic { forget(); fl = 0;
#ifdef GO_ON
    next = 0; sick = 0; fails = 0; targets = 0;
#endif
#ifdef LOCKED
    over++
#endif
  }
}

inline crash(i) { atomic { c < CR && R[i].up -> c++; R[i].up = 0; R[i].val = R[i].dur; R[i].ses++; LOSES(i);
#ifdef AMNESIA
  R[i].prom = 0; R[i].cn = 0; R[i].isr = 0; R[i].val = 0; R[i].dur = 0   /* wrong: another disk in its place keeps its vote */
#endif
} }
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
    for (i : 0 .. N-1) { R[i].up = !(AWAY & B(i)); R[i].cn = CN(1,0); R[i].isr = MEMBERS;
#ifdef PRE
      R[i].prom = 2; R[i].cn = CN(2,1); hiEp = 2;
#ifdef GO_ON
      R[i].open = (MEMBERS & B(i)) > 0
#endif
#endif
    }
    i = 0; run Engine(2); run Engine(4);
#if ENG > 2
    run Engine(6);
#endif
    run Faults()
  }
}
