/*
 * server.pml
 *	  What the protocol stands on: rows, transactions and locks of PostgreSQL, at
 *	  the grain at which backends see each other.
 *
 * A backend has a number, 1 to BACKENDS, and so has its transaction, since it
 * runs one at a time; 0 is none.  Inlines speak of the backend that runs them as
 * "me", of the key as "k", and raise an error by setting "raised".
 *
 * Rows.  A slot is a place in the heap (a tid).  A row is there for others from its
 * insertion on, with the transaction that wrote it (xmin) and the one that is
 * deleting, replacing or locking it (xmax).  When a transaction ends the marks
 * are resolved at once: what it removed is gone, what it wrote is committed
 * (xmin 0), or the other way round.  So no dead rows are kept.  A freed slot is
 * taken again by the next insertion, which is the worst case for those who
 * remember it; but not while a backend is in the middle of a call that has
 * looked at it, for then its snapshot keeps the row from VACUUM.
 *
 * Ends of transactions.  Two steps, as in CommitTransaction: first all it did becomes
 * visible (or vanishes), then its locks are free and who waited for it wakes up.
 *
 * Waiting.  A backend waits for a lock of a key or for the end of a transaction,
 * always for one other backend, and outside of these two for nobody.  A deadlock
 * is a cycle of that; each backend in it may be the one that the detector
 * chooses.  Nothing else breaks a wait (but patience, with -DIMPATIENT), so a
 * wait that hangs without a cycle ends in a state that spin calls invalid.
 */

#define BACKENDS	5
#define OTHER		4			/* none of the clients */
#define NONE		255			/* no slot */
#ifndef KEYS
#define KEYS		1
#endif
#ifndef SLOTS
#define SLOTS		4
#endif

mtype = { FINISHED, LEASED, AHEAD, RETRY };		/* states of a row */
mtype = { RERUN, HOLD, FAIL };					/* takeover policies */

typedef Row {
	byte key;				/* 0: the slot is free */
	byte xmin;				/* who wrote it; 0: it is committed */
	byte xmax;				/* who deletes, replaces or locks it */
	bit pinned;				/* xmax only locks it */
	mtype state;
	byte response;
	bit expired;			/* expires_at is past */
#ifdef LEASES
	bit due;				/* lease_until, or retry_at, is past */
	byte token;
	mtype takeover;
	byte generation;
#endif
};

Row heap[SLOTS];
byte at[BACKENDS + 1] = NONE;	/* the slot that a call has looked at */

byte holder[KEYS + 1];			/* who has the advisory lock */
byte holds[KEYS + 1];			/* and how often */

byte wants[BACKENDS + 1];		/* the lock that a backend waits for, */
byte awaits[BACKENDS + 1];		/* or the transaction */
byte rival[BACKENDS + 1];		/* one that it has met and may wait for */

bit open[BACKENDS + 1];			/* in a transaction */
bit killed[BACKENDS + 1];		/* to be killed */

#ifdef SNAPSHOTS
bit fixed[BACKENDS + 1];		/* one snapshot for the transaction; */
byte changed[BACKENDS + 1];		/* keys that others have changed since */
#endif

hidden byte i, j, n;			/* for use inside one step */

/* two keys whose hashes collide share a lock */
#ifdef COLLISION
#define lock_of(k)	1
#else
#define lock_of(k)	(k)
#endif

#define blocker(b)	(holder[wants[b]] + awaits[b])	/* one of them is 0 */
#define in_cycle(b)	(blocker(b) != 0 && \
	 (blocker(blocker(b)) == b || blocker(blocker(blocker(b))) == b || \
	  blocker(blocker(blocker(blocker(b)))) == b))

/* Things that are known to happen, or the model would show nothing. */
#define W_REPLAY	1			/* a repeat gets the response */
#define W_CLASH		2			/* the unique index ends a claim: 40001 */
#define W_SNAPSHOT	3			/* the snapshot rule does: 40001 */
#define W_OVER		4			/* claimed over an expired row */
#define W_DEADLOCK	5
#define W_LOST		6			/* the version under the claim is another: 40001 */
#define W_TAKEOVER	7			/* a lease is taken over */
#define W_STALE		8			/* the former holder is refused: ID003 */
#define W_BUSY_ROW	9			/* the row is pinned: wait */
#define W_RIVAL		10			/* somebody without the lock is changing the row */
#define W_REMOVED	11			/* the janitor removes a row */
#define W_SECOND	12			/* finished again with the same token */
#define W_STEP		13			/* a step is found done */
#define W_STEP_TWICE	14		/* a step is refused, being done: ID002 */
#define W_AHEAD		15			/* a row is written ahead */

/* With -DWITNESS=W_... spin looks for a way to come here: proof that there is one. */
inline witness(what)
{
#ifdef WITNESS
	assert(what != WITNESS)
#else
	skip
#endif
}

/* Rows ------------------------------------------------------------------ */

inline wipe(s)
{
	heap[s].key = 0;
	heap[s].xmin = 0;
	heap[s].xmax = 0;
	heap[s].pinned = false;
	heap[s].state = 0;
	heap[s].response = 0;
	heap[s].expired = false;
#ifdef LEASES
	heap[s].due = false;
	heap[s].token = 0;
	heap[s].takeover = 0;
	heap[s].generation = 0;
#endif
}

/* The first free slot.  There must be one: SLOTS is chosen so. */
inline find_slot(slot)
{
	slot = NONE;
	for (i : 0 .. SLOTS - 1) {
		if
		:: slot == NONE && heap[i].key == 0 &&
			at[1] != i && at[2] != i && at[3] != i && at[4] != i && at[5] != i ->
			slot = i
		:: else
		fi
	}
	assert(slot != NONE)
}

/* What the unique index says to an insertion of k: clash, or rival, or neither. */
inline check_unique(clash)
{
	clash = false;
	rival[me] = 0;
#ifndef NO_INDEX
	for (i : 0 .. SLOTS - 1) {
		if
		:: heap[i].key != k || (heap[i].xmax == me && !heap[i].pinned)
		:: heap[i].key == k && heap[i].xmin != 0 && heap[i].xmin != me ->
			rival[me] = heap[i].xmin
		:: heap[i].key == k && (heap[i].xmin == 0 || heap[i].xmin == me) &&
			(heap[i].xmax == 0 || heap[i].pinned) ->
			clash = true
		:: else ->
			rival[me] = heap[i].xmax
		fi
	}
#endif
}

/* Does a transaction with one snapshot have to know that a key has changed? */
inline tell_snapshots(t, changed_key)
{
	skip;
#ifdef SNAPSHOTS
	for (j : 1 .. BACKENDS) {
		if
		:: fixed[j] && j != t -> changed[j] = changed[j] | (1 << changed_key)
		:: else
		fi
	}
#endif
}

/* Ends of transactions -------------------------------------------------- */

#ifndef COMMIT_MEMO
#define COMMIT_MEMO(t)	skip
#define ABORT_MEMO(t)	skip
#endif

inline commit_rows(t)
{
	for (i : 0 .. SLOTS - 1) {
		if
		:: heap[i].key != 0 && heap[i].xmax == t && !heap[i].pinned ->
			if
			:: heap[i].xmin != t -> tell_snapshots(t, heap[i].key)
			:: else
			fi;
			wipe(i)
		:: heap[i].key != 0 && (heap[i].xmax != t || heap[i].pinned) ->
			if
			:: heap[i].xmax == t -> heap[i].xmax = 0; heap[i].pinned = false
			:: else
			fi;
			if
			:: heap[i].xmin == t -> heap[i].xmin = 0; tell_snapshots(t, heap[i].key)
			:: else
			fi
		:: else
		fi
	}
	COMMIT_MEMO(t)
}

inline abort_rows(t)
{
	for (i : 0 .. SLOTS - 1) {
		if
		:: heap[i].key != 0 && heap[i].xmin == t -> wipe(i)
		:: heap[i].key != 0 && heap[i].xmin != t && heap[i].xmax == t ->
			heap[i].xmax = 0; heap[i].pinned = false
		:: else
		fi
	}
	ABORT_MEMO(t)
}

inline free_locks(t)
{
	for (i : 1 .. KEYS) {
		if
		:: holder[i] == t -> holder[i] = 0; holds[i] = 0
		:: else
		fi
	}
	for (i : 1 .. BACKENDS) {
		if
		:: awaits[i] == t -> awaits[i] = 0
		:: else
		fi;
		if
		:: rival[i] == t -> rival[i] = 0
		:: else
		fi
	}
	at[t] = NONE;
	wants[t] = 0;
	awaits[t] = 0;
	rival[t] = 0;
	open[t] = false;
#ifdef SNAPSHOTS
	fixed[t] = false;
	changed[t] = 0
#endif
}

/* Waiting --------------------------------------------------------------- */

#ifdef NO_DEADLOCK
#define DEADLOCK_FOUND	assert(false)
#else
#define DEADLOCK_FOUND	printf("-- %d: deadlock detected\n", me); witness(W_DEADLOCK)
#endif

/* Wait for the lock of k.  got is false if we gave up. */
inline wait_lock(got)
{
	wants[me] = lock_of(k);
	if
	:: d_step {
			holder[lock_of(k)] == 0 || holder[lock_of(k)] == me ->
			holder[lock_of(k)] = me;
			holds[lock_of(k)]++;
			got = true
		}
	:: d_step { in_cycle(me) -> DEADLOCK_FOUND; got = false; raised = true }
#ifdef IMPATIENT
	:: got = false
#endif
	fi;
	wants[me] = 0
}

/* Wait for the end of the transaction that was met, if it is not over yet. */
inline wait_rival(got)
{
	awaits[me] = rival[me];
	if
	:: d_step { awaits[me] == 0 -> got = true }
	:: d_step { in_cycle(me) -> DEADLOCK_FOUND; got = false; raised = true }
#ifdef IMPATIENT
	:: awaits[me] != 0 -> got = false
#endif
	fi;
	d_step { awaits[me] = 0; rival[me] = 0 }
}

inline give_back()
{
	d_step {
		printf("-- %d: gives the lock back\n", me);
#ifndef NO_LOCK
		holds[lock_of(k)]--;
		if
		:: holds[lock_of(k)] == 0 -> holder[lock_of(k)] = 0
		:: else
		fi
#endif
	}
}

/* Changing rows that others may change ---------------------------------- */

/* A row can be had at once: it is there, and nobody else has it. */
#define is_mine(s)	(heap[s].key != 0 && \
	(heap[s].xmax == 0 || (heap[s].xmax == me && heap[s].pinned)))
/* It is gone, for us at least. */
#define is_gone(s)	(heap[s].key == 0 || \
	(heap[s].xmax == me && !heap[s].pinned))
