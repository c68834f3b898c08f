/* doubt.pml - commit, exclude and rebuild of an engine that goes on where too few voters have agreed to what it proposed. Included by replicas.pml
 * where GO_ON is set; without it the engine ends there.
 *
 * isr and k are what the engine goes by, next what it proposes. Every voter is asked. One that fails at it is sick until it is opened again, and no
 * member is before it is excluded: so a member that is to stay answers in the session in which it took the writes, and everybody else in a new one.
 * A record also says whether a session is open (open): without that nobody sees later that the cache was lost. So a voter that only does not take what was
 * proposed is no worse a member where its record says so already.
 */
#ifndef FAILS
#define FAILS 1                     /* proposals that find no majority, of each engine: after them it ends */
#endif
#define GOING byte next, sick, fails, targets;
#define WELL(r) !(sick & B(r))
#define WRITERS (isr | targets)
#define VOTES(r, members) ((members & B(r)) -> MINE(r) : R[r].up && R[r].prom <= ep)
#define HERE(i) ((i) < N && R[(i) % N].up && R[(i) % N].prom <= ep)
#define QUORATE (2*(HERE(0) + HERE(1) + HERE(2) + HERE(3) + HERE(4)) > N)

#ifdef CLOSED_EARLY                 /* wrong: with the first proposal to exclude it its session is over, and forgotten that its cache is lost */
#define STAYS(r) false
#else
#define STAYS(r) (isr & B(r))
#endif
inline keep(r, members, seal) {
  R[r].prom = ep + seal; R[r].cn = CN(ep,k); R[r].isr = members;
  if
  :: !seal && (members & B(r)) -> R[r].open = 1
  :: !seal && !(members & B(r)) && STAYS(r)
  :: else -> R[r].open = 0; R[r].lossy = 0
  fi }
/* A voter that was away votes again: it is told what the engine goes by. */
inline tell(r) { R[r].prom = ep; R[r].cn = CN(ep,k); R[r].isr = isr; R[r].open = 0; R[r].lossy = 0 }

#ifdef UNTOLD                       /* wrong: who has not taken the configuration that makes it a member is as good a member as the others */
#define REFUSES skip
#else
#define REFUSES if :: R[r].open :: else -> sick = sick | B(r) fi
#endif
inline propose(members, seal) {     /* acc: who said that it has it */
  atomic { k++; assert(k < 16); acc = 0; todo = ALL }
  do
  DIES
  :: atomic { todo -> pick(todo, r); todo = todo & ~B(r);
       if
       :: FENCED(r) -> goto dead
       :: VOTES(r, members) ->
          if
          :: keep(r, members, seal); acc = acc | B(r)
          :: net < NET -> net++; keep(r, members, seal); sick = sick | B(r)        /* it has it, and fails */
          :: net < NET -> net++; REFUSES                                           /* it does not take it */
          fi
       :: else
       fi; r = 0 }
  :: atomic { !todo -> sick = sick & (isr | members); break }
  od }
/* Too few: the number is used all the same. */
inline refused() { if :: fails < FAILS -> fails++; k++; acc = 0 :: else -> goto dead fi }

inline commit(members, seal) {      /* the first configuration, and the seal: without a majority the engine ends */
  propose(members, seal);
  atomic { if :: MAJ(acc) -> acc = 0 :: else -> goto dead fi } }

#ifdef TOLD_TO_STAY                 /* wrong: one that is still to be excluded is told, too, and that it is a member */
#define RETURNED (ALL & ~next)
#else
#define RETURNED (ALL & ~isr)
#endif
inline exclude() {                  /* the removal of those in bad is in force before anything is acknowledged, however long that takes */
  if
  :: atomic { bad & isr -> next = isr & ~bad; targets = targets & ~bad; bad = 0; if :: !next -> goto dead :: else fi }
     do
     :: propose(next, 0);
        atomic { if
        :: MAJ(acc) -> isr = next; next = 0; acc = 0; break
        :: else -> if :: next & ~sick -> refused(); todo = RETURNED :: else -> goto dead fi
        fi }
        do
        DIES
        :: atomic { todo -> pick(todo, r); todo = todo & ~B(r);
             if
             :: FENCED(r) -> goto dead
             :: R[r].up && R[r].prom <= ep -> tell(r)
             :: !R[r].up
             fi; r = 0 }
        :: atomic { !todo -> break }
        od
     od
  :: atomic { !(bad & isr) -> targets = targets & ~bad; bad = 0 }
  fi }

inline rebuild() {                  /* of r: the copy is durable first, and where a majority is there r is proposed as a member */
  atomic {
    if
    :: FENCED(r) -> goto dead
    :: R[r].up && R[r].prom <= ep ->
       tell(r);
       if
       :: QUORATE -> R[r].val = x; R[r].dur = x; ses[r] = R[r].ses; sick = sick & ~B(r); next = isr | B(r)
       :: else
       fi
    :: !R[r].up
    fi; r = 0 }
  if
  :: next ->
     propose(next, 0);
     atomic {
       if
       :: MAJ(acc) -> isr = next
       :: else -> refused();
#ifdef DOUBT_FORGOTTEN              /* wrong: then it is none. It takes writes, as whatever is being rebuilt, and concerns nobody when it fails */
          targets = next & ~isr
#else
          bad = next & ~isr & sick; isr = next         /* some may have it that it is a member, so it is one */
#endif
       fi;
       next = 0; acc = 0 }
     exclude()
  :: !next
  fi }
