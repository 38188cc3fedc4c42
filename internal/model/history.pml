/*
 * The history of a managed secret: staging, proof, activation, rollback, retirement, losses
 * of the store and crashes. docs/model.md explains this file, and lease.pml the conventions.
 */

#ifndef REPLICAS
#define REPLICAS 2
#endif
#ifndef CALLS /* of operators, at the same time */
#define CALLS 2
#endif
#ifndef REPEATS /* of calls that were complete, because the response was lost */
#define REPEATS 0
#endif
#ifndef CRASHES
#define CRASHES 0
#endif
#ifndef LOSSES
#define LOSSES 0
#endif
#ifndef REFUSED /* the IdP refuses this version from some moment on; 0: none */
#define REFUSED 0
#endif

/* With OUTAGE, the IdP refuses the first two versions for a while instead. */

#define VERSIONS 4
#define HISTORIES 15

/* Histories are immutable: the replicas and the store have the number of one. Number 0 has
 * no versions. A version is a number; 0 is none. */
typedef History {
	byte generation;
	short ancestors; /* bits, with its own */
	byte current, previous, pending;
	byte at;        /* the activation that made the current version current */
	byte retired;   /* bits */
	byte known, done; /* requests, as bits */
	byte based[CALLS], based_at[CALLS]; /* current and at when the request was recorded */
}
History H[HISTORIES];
byte made = 1; /* the last history */
History T; /* a change in progress */

/* The store. */
byte stored = 1, number = 1;
byte stored_before, number_before; /* a failover may lose the last write */

/* The replicas. */
byte has[REPLICAS];
bool crashed[REPLICAS];
byte proven[REPLICAS], expected[REPLICAS], expected_at[REPLICAS], since[REPLICAS]; /* a background activation */

/* A change reads the store, and writes only if nothing was written since. The first CALLS
 * are those of operators, the others are background activations. */
#define CHANGES (CALLS + REPLICAS)
byte own[CHANGES], read[CHANGES], read_number[CHANGES];
bool reading[CHANGES];

/* The calls of operators. */
mtype = { fresh, staging, choosing, proving, activating, retiring, discarding, complete, failed };
mtype = { rotate, rollback, activate, retire };
typedef Call {
	mtype at = fresh, kind;
	byte replica, version, base, base_at;
	bool begun;
	/* For the properties only. */
	byte since; /* how many activations there were when the call began */
}
Call C[CALLS];

/* The IdP. */
bool refuses, refused_before;
#ifdef OUTAGE
#define accepts(v) (!(refuses && (v) <= 2))
#else
#define accepts(v) (!(refuses && (v) == REFUSED))
#endif

/* For the properties only. */
byte activations, activated[VERSIONS + 1]; /* when each version became current */
byte proved = 1 | 2, written = 6, gone; /* versions, as bits */
byte repeats = REPEATS, crashes = CRASHES, losses = LOSSES;
byte n, v, since_when, winner, loser, ours, theirs;

#define bit(i) (1 << (i))
#define descends(a, b) ((b) == 0 || (H[a].ancestors & bit(b)))

#define copy(from, to) \
	to.generation = from.generation; to.ancestors = from.ancestors; to.current = from.current; to.previous = from.previous; \
	to.pending = from.pending; to.at = from.at; to.retired = from.retired; to.known = from.known; to.done = from.done; \
	for (n : 0 .. CALLS - 1) { to.based[n] = from.based[n]; to.based_at[n] = from.based_at[n] }
#define clear_t() \
	T.generation = 0; T.ancestors = 0; T.current = 0; T.previous = 0; T.pending = 0; T.at = 0; T.retired = 0; T.known = 0; T.done = 0; \
	for (n : 0 .. CALLS - 1) { T.based[n] = 0; T.based_at[n] = 0 }; \
	n = 0; v = 0; since_when = 0; winner = 0; loser = 0; ours = 0; theirs = 0

#define in_t(v) (T.current == v || T.previous == v || T.pending == v || (T.retired & bit(v)))

/* keep gives a version that only the loser has the first free state. */
inline keep(was_current, was_active) {
	if
	:: v == 0 -> skip
	:: v != 0 && in_t(v) && !(was_current && T.current == 0) -> skip
	:: else ->
		if :: T.previous == v -> T.previous = 0 :: T.pending == v -> T.pending = 0 :: else fi;
		T.retired = T.retired & ~bit(v);
		if
		:: was_current && T.current == 0 -> T.current = v; T.at = H[loser].at
		:: else ->
			if
			:: was_active && T.previous == 0 -> T.previous = v
			:: else ->
				if
				:: T.pending == 0 -> T.pending = v
				:: else -> T.retired = T.retired | bit(v); gone = gone | bit(v)
				fi
			fi
		fi
	fi
}

/* merge is credential.Set.merge with secret.History.Merge: T is the history that the store
 * should have, from that of the replica and that of the store. */
inline merge() {
	if
	:: descends(theirs, ours) -> copy(H[theirs], T)
#ifdef OFF_DESCENDS
	:: !descends(theirs, ours) -> copy(H[theirs], T)
#else
	:: !descends(theirs, ours) && descends(ours, theirs) -> copy(H[ours], T)
	:: !descends(theirs, ours) && !descends(ours, theirs) ->
		if
		:: H[ours].generation > H[theirs].generation || (H[ours].generation == H[theirs].generation && ours > theirs) -> winner = ours; loser = theirs
		:: else -> winner = theirs; loser = ours
		fi;
		copy(H[winner], T);
		T.generation++;
		T.ancestors = H[ours].ancestors | H[theirs].ancestors;
		for (n : 0 .. CALLS - 1) {
			if :: (H[loser].known & bit(n)) && !(T.known & bit(n)) -> T.based[n] = H[loser].based[n]; T.based_at[n] = H[loser].based_at[n] :: else fi
		}
		T.done = T.done | (H[loser].done & ~T.known);
		T.known = T.known | H[loser].known;
#ifndef OFF_MERGE
		v = H[loser].current; keep(true, true);
		v = H[loser].previous; keep(false, true);
		v = H[loser].pending; keep(false, false)
#endif
#endif
	fi
}

/* adopt gives the replica the history of the store, unless it knows a newer one. */
#ifdef OFF_DESCENDS
#define adopt(r) has[r] = stored
#else
#define adopt(r) if :: descends(stored, has[r]) -> has[r] = stored :: else fi
#endif

/* read_store begins a change. */
#define read_store(c, r) \
	adopt(r); \
	own[c] = has[r]; read[c] = stored; read_number[c] = number; reading[c] = true

#define forget_read(c) own[c] = 0; read[c] = 0; read_number[c] = 0; reading[c] = false

#ifdef OFF_SWAP
#define unchanged(c) true
#else
#define unchanged(c) (read_number[c] + 1 > number)
#endif

/* put stores a history, which store.CompareAndSwap has accepted. */
#define put(h, c) \
	stored_before = stored; number_before = number; \
	number = (read_number[c] + 1 > number -> read_number[c] + 1 : number); \
	stored = h

/* write stores T as a history of its own. */
#define write(c, r) \
	assert(made < HISTORIES - 1); \
	made++; \
	T.ancestors = T.ancestors | bit(made); \
	copy(T, H[made]); \
	put(made, c); \
	adopt(r); \
	forget_read(c)

/* make_current activates a version in T, for somebody who decided when so many
 * activations had been made. */
inline make_current() {
	/* A staged secret never replaces one that was activated later. */
	assert(T.current == 0 || activated[T.current] <= since_when);
	/* A secret becomes current only after it has obtained a token. */
	assert(proved & bit(v));
	if :: T.previous != 0 && T.previous != v -> T.retired = T.retired | bit(T.previous); gone = gone | bit(T.previous) :: else fi;
	T.previous = T.current;
	T.current = v;
	if :: T.pending == v -> T.pending = 0 :: else fi;
	activations++; activated[v] = activations; T.at = activations
}

#define again (T.known & bit(me))
#define over (again && (T.done & bit(me)))
#ifdef OFF_DONE
#undef over
#define over false
#endif
/* The same version is current, but was made current again. */
#ifdef OFF_SINCE
#define again_current(since) false
#else
#define again_current(since) (T.at != since)
#endif
#define this C[me]
#define ends_with(result) \
	this.at = result; this.begun = false; this.base = 0; this.base_at = 0; this.replica = 0; forget_read(me)
#ifdef OFF_BASE
#define overtaken false
#else
#define overtaken (this.begun && (T.current != this.base || again_current(this.base_at)) && T.current != this.version)
#endif
#ifdef OFF_RESUMED_BASE
#define resumed_late false
#else
#define resumed_late (!this.begun && again && (T.current != T.based[me] || again_current(T.based_at[me])) && T.current != this.version)
#endif

inline begin() {
	if :: !this.begun && !again -> this.since = activations :: else fi; /* else it was recorded before */
	this.begun = true; this.base = T.current; this.base_at = T.at
}

inline record(finished) {
	T.generation++;
	/* The first record of a request keeps its base. */
	if :: !again -> T.based[me] = this.base; T.based_at[me] = this.base_at :: else fi;
	T.known = T.known | bit(me);
	if :: finished -> T.done = T.done | bit(me) :: else fi
}

/* go_on is the rest of rotation.procedure.change: goOn, the step, and the write. */
inline go_on() {
	ours = own[me]; theirs = read[me]; merge();
	if
	:: over -> ends_with(complete)
	:: !over && (overtaken || resumed_late) -> ends_with(failed)
	:: !over && !(overtaken || resumed_late) && this.at == choosing ->
		begin();
		this.version = (this.kind == rollback -> T.previous : T.pending);
		forget_read(me);
		if
		:: this.version == 0 -> ends_with(failed)
		:: else -> this.at = proving
		fi
	:: !over && !(overtaken || resumed_late) && this.at != choosing && !unchanged(me) -> forget_read(me) /* try again */
	:: !over && !(overtaken || resumed_late) && this.at != choosing && unchanged(me) ->
		begin();
		if
		:: this.at == staging ->
			if
			:: T.current == this.version || T.pending == this.version -> record(false); write(me, this.replica); this.at = proving
#ifndef OFF_ONE_PENDING
			:: T.current != this.version && T.pending != 0 && T.pending != this.version -> ends_with(failed)
			:: T.pending == 0 && T.previous == this.version -> ends_with(failed)
			:: T.current != this.version && T.pending == 0 && T.previous != this.version ->
#else
			:: T.current != this.version && T.pending != this.version && T.previous != this.version ->
#endif
				T.pending = this.version; T.retired = T.retired & ~bit(this.version);
				written = written | bit(this.version); gone = gone & ~bit(this.version);
				record(false); write(me, this.replica); this.at = proving
			fi
		:: this.at == activating ->
			if
			:: T.current == this.version -> record(true); write(me, this.replica); ends_with(complete)
			:: T.current != this.version && (T.pending == this.version || T.previous == this.version) ->
				v = this.version; since_when = this.since; make_current();
				record(true); write(me, this.replica); ends_with(complete)
			:: else -> ends_with(failed)
			fi
		:: this.at == retiring || this.at == discarding ->
			if
#ifdef OFF_IN_USE
			:: T.current == this.version ->
				T.current = 0; T.retired = T.retired | bit(this.version); gone = gone | bit(this.version);
				record(true); write(me, this.replica); ends_with(complete)
#endif
			:: T.pending == this.version || T.previous == this.version ->
				if :: T.pending == this.version -> T.pending = 0 :: else -> T.previous = 0 fi;
				T.retired = T.retired | bit(this.version); gone = gone | bit(this.version);
				record(true); write(me, this.replica); ends_with(complete)
			:: else -> ends_with(failed)
			fi
		fi
	fi
}

/* prove obtains a token with the version, if the replica knows it. */
inline prove() {
	if
	:: H[has[this.replica]].current != this.version && H[has[this.replica]].previous != this.version &&
		H[has[this.replica]].pending != this.version -> ends_with(failed)
#ifdef OFF_PROVE
	:: else -> this.at = activating
#else
	:: H[has[this.replica]].current == this.version -> this.at = activating
	:: else ->
		if
		:: accepts(this.version) -> proved = proved | bit(this.version); this.at = activating
		:: else ->
			if
			:: this.kind == rotate -> this.at = discarding
			:: else -> ends_with(failed)
			fi
		fi
#endif
	fi
}

#define when(condition) atomic { (condition) ->
#define then clear_t() }

proctype Operator(byte me) {
	/* The choice of the call. */
	atomic {
		if
		:: this.kind = rotate; this.version = 3
		:: this.kind = rotate; this.version = 4
		:: this.kind = rollback
		:: this.kind = activate
		:: this.kind = retire; this.version = 1
		:: this.kind = retire; this.version = 3
		fi
	}
end: do
	:: when(this.at == fresh)
		if :: this.replica = 0 :: this.replica = REPLICAS - 1 fi;
		if
		:: this.kind == rotate -> this.at = staging
		:: this.kind == rollback || this.kind == activate -> this.at = choosing
		:: this.kind == retire -> this.at = retiring
		fi;
		then
	:: when(this.at != fresh && this.at != complete && this.at != failed && this.at != proving && !reading[me] && !crashed[this.replica])
		read_store(me, this.replica); then
	:: when(reading[me] && !crashed[this.replica]) go_on(); then
	:: when(this.at == proving && !crashed[this.replica]) prove(); then
	/* The caller repeats a call if its replica has crashed, or if it got no response. */
	:: when(this.at != fresh && this.at != complete && this.at != failed && crashed[this.replica])
		if :: this.kind == rollback || this.kind == activate -> this.version = 0 :: else fi;
		ends_with(fresh); then
	:: when(this.at == complete && repeats > 0)
		repeats--;
		if :: this.kind == rollback || this.kind == activate -> this.version = 0 :: else fi;
		ends_with(fresh); then
	od
}

#define my_change (CALLS + me)
#define view H[has[me]]
#ifdef OFF_EXPECTED
#define unexpected false
#else
#define unexpected (T.current != expected[me] || again_current(expected_at[me]))
#endif

proctype Replica(byte me) {
end: do
	/* A fetch found that the IdP takes the staged version and no other one. */
	:: when(!crashed[me] && proven[me] == 0 && view.pending != 0 && accepts(view.pending) && view.current != 0 &&
		!accepts(view.current) && (view.previous == 0 || !accepts(view.previous)))
		proven[me] = view.pending; expected[me] = view.current; expected_at[me] = view.at; since[me] = activations;
		proved = proved | bit(view.pending); then
	/* credential.Set.makeCurrent. */
	:: when(!crashed[me] && proven[me] != 0 && !reading[my_change]) read_store(my_change, me); then
	:: when(!crashed[me] && reading[my_change])
		ours = own[my_change]; theirs = read[my_change]; merge();
		if
		:: unexpected || (T.pending != proven[me] && T.previous != proven[me]) ->
			forget_read(my_change); proven[me] = 0; expected[me] = 0; expected_at[me] = 0; since[me] = 0
		:: !unexpected && (T.pending == proven[me] || T.previous == proven[me]) && unchanged(my_change) ->
			v = proven[me]; since_when = since[me]; make_current();
			T.generation++;
			write(my_change, me); proven[me] = 0; expected[me] = 0; expected_at[me] = 0; since[me] = 0
		:: else -> forget_read(my_change)
		fi;
		then
	/* credential.Fleet.Poll: adopt, and write back what the store has lost. */
	:: when(!crashed[me] && has[me] != stored && descends(stored, has[me])) adopt(me); then
#ifdef OFF_DESCENDS
	:: when(!crashed[me] && has[me] != stored) adopt(me); then
#endif
#ifndef OFF_REPAIR
	:: when(!crashed[me] && !descends(stored, has[me]) && !reading[my_change] && proven[me] == 0)
		own[my_change] = has[me]; read[my_change] = stored; read_number[my_change] = number;
		ours = has[me]; theirs = stored; merge();
		if
		:: descends(has[me], stored) -> put(has[me], my_change); forget_read(my_change)
		:: else -> write(my_change, me)
		fi;
		then
#endif
	/* Faults, and their ends. */
	:: when(!crashed[me] && crashes > 0)
		crashes--; crashed[me] = true; has[me] = 0; proven[me] = 0; expected[me] = 0; expected_at[me] = 0; since[me] = 0; forget_read(my_change); then
	:: when(crashed[me]) crashed[me] = false; then
	od
}

#define nobody_changes (!reading[0] && !reading[CHANGES - 1] && !reading[CHANGES - 2] && !reading[1])

proctype World() {
end: do
#ifdef OUTAGE
	:: when(!refuses && !refused_before) refuses = true; refused_before = true; then
	:: when(refuses) refuses = false; then
#else
	:: when(REFUSED > 0 && !refuses) refuses = true; then
#endif
	/* Not between the read and the write of a change: see docs/model.md. */
	:: when(losses > 0 && nobody_changes) losses--; stored = 0; number = 0; then
	:: when(losses > 0 && nobody_changes && stored_before > 0) losses--; stored = stored_before; number = number_before; then
	od
}

proctype Recovered() {
	atomic {
		timeout;
		/* Each crash is recovered: no call is stuck, and all replicas and the store agree. */
		for (n : 0 .. CALLS - 1) { assert(C[n].at == complete || C[n].at == failed) }
		for (n : 0 .. REPLICAS - 1) { assert(!crashed[n] && has[n] == stored) }
		/* There is a current version, and no version was lost. */
		assert(H[stored].current != 0);
		for (n : 1 .. VERSIONS) {
			assert(!(written & bit(n)) || (gone & bit(n)) || (CRASHES > 0 && LOSSES > 0) ||
				H[stored].current == n || H[stored].previous == n || H[stored].pending == n)
		}
	}
}

/* At first version 2 is current, and version 1 was before it. */
init {
	atomic {
		H[1].generation = 1; H[1].ancestors = bit(1); H[1].current = 2; H[1].previous = 1;
		for (n : 0 .. REPLICAS - 1) { has[n] = 1; run Replica(n) };
		for (n : 0 .. CALLS - 1) { run Operator(n) };
		run World(); run Recovered();
		n = 0
	}
}
