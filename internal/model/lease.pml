/*
 * The lease of the fleet with its fence and its epoch. docs/model.md explains this file.
 *
 * Spin tries each order of the transitions below. A transition is one step of a replica: a
 * call to the store, which is atomic there, or work in the memory of the replica.
 *
 * Each guard of the code has a name here; "-DOFF_RENEW" compiles the model without
 * the renewal of leases, and then Spin must find an error.
 */

/* The size of the scenario; the test overrides it. */
#ifndef REPLICAS
#define REPLICAS 2
#endif
#ifndef REFRESHES /* of tokens that are still usable */
#define REFRESHES 1
#endif
#ifndef CRASHES
#define CRASHES 0
#endif
#ifndef CUTS /* of the connection of one replica to the store */
#define CUTS 0
#endif
#ifndef LOSSES /* of the store's data */
#define LOSSES 0
#endif
#ifndef PURGES
#define PURGES 0
#endif

#define NOBODY REPLICAS

typedef Token {
	byte number; /* 0: no token */
	byte epoch;
	/* For the properties only. The code does not know them. */
	byte order;  /* the lease with its number, counted by the time of the grant; 0: no lease */
	bool gap;    /* its lease was granted while the counter of fences was lost */
	byte purges; /* how many purges had begun when its fetch began */
}

/* The store. */
byte owner = NOBODY; /* of the lease */
byte fences, epochs; /* counters */
Token stored;

/* A replica. */
mtype = { idle, look, adopt, claim, confirm, start, fetching, got_it };
typedef Replica {
	bool crashed, cut;
	mtype at = idle;  /* the stage of its flight */
	byte fence, epoch; /* the highest that it has seen */
	byte lease;       /* the fence of its lease; 0: without a lease */
	bool fresh;       /* the held token is newer than the one at the start of the flight */
	Token held;       /* in memory */
	Token got;        /* from the IdP */
	Token view;       /* the response of the store to the last look, or to the claim */
	byte view_epoch;
	/* For the properties only. */
	byte order;       /* of the lease with the highest fence that it has seen */
	bool gap;
	bool excused;     /* it fetches without a lease that lasts, for a fault of the store */
	byte view_due, due; /* the tokens that it must no longer hand out: those of before this purge */
}
Replica R[REPLICAS];

/* The operator purges, and repeats the call until it is acknowledged. */
byte purging = NOBODY; /* the replica that has the call */
byte target;           /* the epoch that it opens */
bool behind;           /* the clock of this replica is behind */

/* For the properties only. */
byte begun, acknowledged; /* purges */
byte purge_epoch;         /* that of the last acknowledged one */
byte last_order, highest; /* leases; the highest epoch ever */
byte faults;
bool gap;                 /* the store lost its counters, and not each replica has looked since */
byte looked;              /* the replicas that have looked since, as bits */

/* What is left of the scenario. */
byte refreshes = REFRESHES, crashes = CRASHES, cuts = CUTS, losses = LOSSES, purges = PURGES;
byte n; /* counts */

#define me R[_pid]
#define usable(token, r) (R[r].token.number > 0 && R[r].token.epoch >= R[r].epoch)
#ifdef OFF_EPOCH
#undef usable
#define usable(token, r) (R[r].token.number > 0)
#endif
#define connected (!me.crashed && !me.cut)
#define max(a, b) ((a) > (b) -> (a) : (b))
#define copy(from, to) \
	to.number = from.number; to.epoch = from.epoch; to.order = from.order; to.gap = from.gap; to.purges = from.purges
#define none(token) \
	token.number = 0; token.epoch = 0; token.order = 0; token.gap = 0; token.purges = 0

/* An older token must not replace a newer one: one with a lease that was granted earlier.
 * The order is lost only while the counter of fences is lost. */
#define in_order(older, newer) \
	assert(older.order == 0 || newer.order == 0 || newer.order >= older.order || older.gap)

#define holds_lease(r) (R[r].lease > 0 && (R[r].at == confirm || R[r].at == start || R[r].at == fetching || R[r].at == got_it))

/* The holder renews its lease, so it expires only if the holder cannot. */
#ifdef OFF_RENEW
#define may_expire (owner != NOBODY)
#else
#define may_expire (owner != NOBODY && (R[owner].crashed || R[owner].cut || !holds_lease(owner)))
#endif
#ifdef OFF_EXPIRY
#undef may_expire
#define may_expire false
#endif

inline excuse_all() {
	for (n : 0 .. REPLICAS - 1) { R[n].excused = true }
}

/* forgotten ends the duties of a purge if the store has lost it and each replica that knew
 * it has ended: nobody can restore it. */
inline forget() {
	n = 0;
	do
	:: n < REPLICAS && (R[n].crashed || R[n].epoch < purge_epoch) -> n++
	:: n < REPLICAS && !(R[n].crashed || R[n].epoch < purge_epoch) -> break
	:: n == REPLICAS -> break
	od;
	if
	:: n == REPLICAS && epochs < purge_epoch ->
		acknowledged = 0;
		for (n : 0 .. REPLICAS - 1) { R[n].due = 0; R[n].view_due = 0 }
	:: else
	fi
}

/* see records that a replica has read the counters in the store. */
inline see() {
	if
	:: gap ->
		looked = looked | (1 << _pid);
		n = 0;
		do
		:: n < REPLICAS && (R[n].crashed || (looked & (1 << n))) -> n++
		:: n < REPLICAS && !(R[n].crashed || (looked & (1 << n))) -> break
		:: n == REPLICAS -> gap = false; break
		od
	:: else
	fi
}

/* adopt_epoch is epoch.Counters.Adopt with putBackEpoch. */
inline adopt_epoch(read) {
	if
	:: read > me.epoch -> me.epoch = read
#ifndef OFF_PUT_BACK_EPOCH
	:: read < me.epoch && !me.cut ->
#ifdef OFF_ABOVE
		epochs = max(epochs, me.epoch);
#else
		epochs = max(epochs, me.epoch + (epochs > 0 && epochs < me.epoch -> 1 : 0));
#endif
		highest = max(highest, epochs);
		me.epoch = epochs
#endif
	:: else
	fi
}

/* adopt_token is broker.adopt: the fence, then the token if it is newer. */
inline adopt_token(token) {
	if
	:: token.number > me.fence -> me.fence = token.number; me.order = token.order; me.gap = token.gap
	:: else
	fi;
	if
#ifdef OFF_NEWER_IN_REPLICA
	:: token.number > 0 && token.epoch >= me.epoch ->
#else
	:: token.number > 0 && token.epoch >= me.epoch && (!usable(held, _pid) || token.number > me.held.number) ->
#endif
		if
		:: usable(held, _pid) -> in_order(me.held, token)
		:: else
		fi;
		if
		:: me.held.number != token.number || me.held.order != token.order -> me.fresh = true
		:: else
		fi;
		copy(token, me.held)
	:: else
	fi
}

inline end_flight() {
	me.at = idle; me.lease = 0; me.fresh = false; me.excused = false;
	none(me.got); none(me.view); me.view_epoch = 0; me.view_due = 0
}

inline release() {
#ifdef OFF_OWNER
	if :: me.lease > 0 -> owner = NOBODY :: else fi
#else
	if :: me.lease > 0 && owner == _pid -> owner = NOBODY :: else fi
#endif
}

/* The flight of a replica. */

inline want() {
	if
	:: usable(held, _pid) -> refreshes--
	:: else
	fi;
	me.at = look
}

inline read_store(next) {
	copy(stored, me.view);
	me.view_epoch = epochs;
	me.view_due = (gap -> 0 : acknowledged);
	me.at = next
}

inline adopt_view() {
	adopt_epoch(me.view_epoch);
	adopt_token(me.view);
	me.due = max(me.due, me.view_due);
	if
	:: me.fresh && usable(held, _pid) ->
		if :: !me.cut -> release() :: else fi;
		end_flight()
	:: else ->
		me.at = (me.at == adopt -> claim : start);
		none(me.view); me.view_epoch = 0; me.view_due = 0
	fi
}

/* acquire is luaAcquire. In the same step it reads the store, as a look does; so does a
 * claim of a lease that another replica holds. */
#ifdef OFF_LEASE
#define may_acquire true
#else
#define may_acquire (owner == NOBODY)
#endif
inline acquire() {
#ifdef OFF_FLOOR
	fences = fences + 1;
#else
	fences = max(fences, me.fence) + 1;
#endif
	owner = _pid;
	me.lease = fences; me.fence = max(me.fence, fences);
	last_order++; me.order = last_order; me.gap = gap; me.excused = false;
#ifdef OFF_CONFIRM
	me.at = start
#else
	read_store(confirm)
#endif
}

inline fetch_alone() {
	if
	:: me.lease == 0 && usable(held, _pid) -> end_flight() /* a refresh can wait */
	:: else -> me.excused = true; me.at = start
	fi
}

inline begin_fetch() {
	/* One fetch at a time while the store responds. */
	if
	:: !me.excused ->
		for (n : 0 .. REPLICAS - 1) {
			assert(n == _pid || R[n].at != fetching || R[n].excused)
		}
		/* It is needed: the store has no newer token that would do. */
		assert(faults > 0 || stored.number <= me.held.number || stored.epoch < me.epoch);
		/* Its number exceeds those of the tokens that it is to replace. */
		assert(me.held.number < max(me.lease, me.fence) || !usable(held, _pid) || me.fresh)
	:: else
	fi;
	me.got.number = max(me.lease, me.fence);
	me.got.epoch = me.epoch;
	me.got.order = (me.lease > 0 -> me.order : 0);
	me.got.gap = me.gap;
	me.got.purges = begun;
	me.at = fetching
}

inline respond() {
#ifdef OFF_EPOCH_AT_START
	me.got.epoch = me.epoch;
#endif
	if
	:: me.got.epoch < me.epoch -> me.at = start /* purged in the meantime */
	:: else -> me.at = got_it
	fi
}

/* publish is luaApply, then broker.remember. */
inline publish() {
	if
#ifdef OFF_NEWER_IN_STORE
	:: me.lease > 0 && !me.cut ->
#else
	:: me.lease > 0 && !me.cut && me.got.number > stored.number ->
#endif
		if
		:: stored.number > 0 && stored.epoch <= me.got.epoch -> in_order(stored, me.got)
		:: else
		fi;
		copy(me.got, stored)
	:: else
	fi;
	if :: !me.cut -> release() :: else fi;
	/* The callers that wait for the flight get its token if it is usable. */
	assert(!usable(got, _pid) || me.got.purges >= me.due);
	if
	:: !usable(held, _pid) || me.got.number >= me.held.number ->
		if
		:: usable(held, _pid) -> in_order(me.held, me.got)
		:: else
		fi;
		copy(me.got, me.held)
	:: else
	fi;
	end_flight()
}

/* The background work of a replica. */

/* poll is epoch.Synchronize, every 5 s. */
inline poll() {
	me.due = max(me.due, (gap -> 0 : acknowledged));
	adopt_epoch(epochs);
#ifndef OFF_PUT_BACK_FENCE
	fences = max(fences, me.fence);
#endif
	see()
}
#ifdef OFF_PUT_BACK_FENCE
#define lacks_fences false
#else
#define lacks_fences (fences < me.fence)
#endif
#ifdef OFF_PUT_BACK_EPOCH
#define lacks_epoch (epochs > me.epoch)
#else
#define lacks_epoch (epochs != me.epoch)
#endif
#define poll_due (lacks_epoch || lacks_fences || (gap && !(looked & (1 << _pid))) || (!gap && me.due < acknowledged))

/* notice is the look of a watch, after an event of the store. */
inline notice() {
	adopt_epoch(epochs);
	adopt_token(stored)
}

/* The operator. A purge is epoch.Counters.AdvanceOnce. */

inline begin_purge() {
	if :: begun == acknowledged || purges > 0 -> begun = max(begun, PURGES - purges + 1) :: else fi;
	purging = _pid;
#ifdef BEHIND
	behind = true;
#endif
#ifdef OFF_CLOCK
	target = max(epochs, me.epoch) + 1
#else
	target = max(max(epochs, me.epoch), (behind -> 0 : highest + 1)) + 1
#endif
}

inline finish_purge() {
#ifdef OFF_OPENS
	epochs = max(epochs, target);
#else
	epochs = max(epochs, target - 1) + 1;
#endif
	highest = max(highest, epochs);
	adopt_epoch(epochs);
	acknowledged = begun; purge_epoch = epochs;
	if
	:: behind -> gap = true; looked = 0 /* the others find it out with one look, this one with the next */
	:: else -> me.due = begun
	fi;
	purges--; purging = NOBODY; target = 0
}

/* Faults. */

inline crash() {
	crashes--; faults++;
	if :: purging == _pid -> purging = NOBODY; target = 0 :: else fi;
	me.crashed = true; me.cut = false; me.fence = 0; me.epoch = 0; me.order = 0; me.gap = false; me.due = 0;
	none(me.held); end_flight(); forget()
}

inline lose() {
	losses--; faults++;
#ifdef TOTAL
	owner = NOBODY; fences = 0; epochs = 0; none(stored);
#else
	if :: owner = NOBODY :: skip fi;
	if :: fences = 0 :: skip fi;
	if :: epochs = 0 :: skip fi;
	if :: none(stored) :: skip fi;
#endif
	gap = true; looked = 0;
	excuse_all(); forget()
}

/* Whoever holds a token that must not be handed out, holds it as unusable. */
inline check() {
	for (n : 0 .. REPLICAS - 1) {
		assert(R[n].crashed || !usable(held, n) || R[n].held.purges >= R[n].due)
	}
}

/* The store has lost a purge that one replica knows. */
inline lost_purge() {
#ifdef BEHIND
	highest = 2; /* higher than the clock of the replica that purges next */
#else
	highest = 1;
#endif
	R[1].epoch = highest; R[1].fence = 1; R[1].order = 1;
	R[1].held.number = 1; R[1].held.epoch = highest; R[1].held.order = 1;
	last_order = 1; gap = true
}

bool ready;
#define when(condition) atomic { (ready && (condition)) ->
#define then check() }

active [REPLICAS] proctype Broker() {
	if
	:: _pid == 0 ->
#ifdef LOST_PURGE
		atomic { lost_purge(); ready = true }
#else
		ready = true
#endif
	:: else
	fi;
end: do
	/* The flight. */
	:: when(!me.crashed && me.at == idle && (!usable(held, _pid) || refreshes > 0)) want(); then
	:: when(connected && me.at == look) read_store(adopt); then
	:: when(!me.crashed && (me.at == adopt || me.at == confirm)) adopt_view(); then
	:: when(connected && me.at == claim && may_acquire) acquire(); then
	:: when(connected && me.at == claim && (stored.number > me.fence || epochs > me.epoch)) me.at = look; then /* an event */
	:: when(connected && me.at == claim && !may_acquire && (stored.number > me.fence || epochs > me.epoch)) read_store(adopt); then
#ifndef OFF_ALONE
	:: when(me.cut && (me.at == look || me.at == claim)) fetch_alone(); then
#endif
	:: when(!me.crashed && me.at == start) begin_fetch(); then
	:: when(!me.crashed && me.at == fetching) respond(); then
	:: when(!me.crashed && me.at == got_it) publish(); then
	/* The background. */
	:: when(connected && poll_due) poll(); then
	:: when(connected && stored.number > me.fence) notice(); then
	/* The operator. */
	:: when(connected && purging == NOBODY && purges > 0) begin_purge(); then
	:: when(connected && purging == _pid) finish_purge(); then
	:: when(me.cut && purging == _pid) purging = NOBODY; target = 0; then /* it is not acknowledged */
	/* Faults, and their ends. */
	:: when(!me.crashed && crashes > 0) crash(); then
	:: when(me.crashed) me.crashed = false; then
	:: when(connected && cuts > 0) cuts--; faults++; me.cut = true; me.excused = true; then
#ifndef AWAY
	:: when(me.cut) me.cut = false; then
#endif
	od
}

active proctype Store() {
end: do
	:: when(may_expire) owner = NOBODY; then
	:: when(losses > 0) lose(); then
	od
}

/* When nothing more can happen, each crash and each fault is over, and no caller waits. */
active proctype Recovered() {
	atomic {
		timeout;
		for (n : 0 .. REPLICAS - 1) {
			assert(!R[n].crashed && R[n].at == idle && usable(held, n))
		}
	}
}
