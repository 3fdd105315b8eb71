/*
 * protocol.pml
 *	  The protocol of idempotency, in the words of the C code.
 *
 * Each inline is the function whose name it bears; what is one step here is one
 * visit to shared memory there.  They work on these variables of the process:
 *
 *	me, k		the backend, the key
 *	outcome		what idem_claim answers, OPEN for "claimed"
 *	locked		the lock of the key is held by this call
 *	under		the row under the claim (PendingWork.row), or NONE
 *	raised		an error was raised: roll back
 *	met			the look met a transaction, rival[me], that may be over by now
 *	got, clash	results for immediate use
 *	new_...		what else a row has that is about to be written (leases)
 *
 * Ghosts.  answer[k] is the response of the one execution that may be committed in
 * this life of k, 0 if there is none yet, and effects[k] counts executions.  They
 * know what the code does not, and are compared with what it says.
 */

#include "server.pml"

mtype = { OPEN, REPLAYED, BUSY, LATER, HELD, GONE, CHANGED };

byte answer[KEYS + 1];
byte effects[KEYS + 1];
#ifdef SNAPSHOTS
byte saw[BACKENDS + 1];			/* the answer that the snapshot shows */
#endif
#ifdef LEASES
byte token[BACKENDS + 1];		/* what each client has been given */
#endif

/* record_is_live(); rows written ahead do not count even if committed */
#ifdef LEASES
#define is_live(s)	(heap[s].state != AHEAD && (!heap[s].expired || \
	(heap[s].state == LEASED && (!heap[s].due || heap[s].takeover == HOLD))))
#else
#define is_live(s)	(heap[s].state != AHEAD && !heap[s].expired)
#endif

/* Same answer, and one that agrees with what else the transaction reads. */
inline check_replay(heard)
{
	witness(W_REPLAY);
	assert(heard != 0 && heard == answer[k]);
#ifdef SNAPSHOTS
	assert(!fixed[me] || saw[me] == heard)
#endif
}

/* ----------------------------------------------------------------
 *						claim.c, record.c: looking
 * ----------------------------------------------------------------
 */

/* lock_key_try() */
inline lock_key_try()
{
#ifdef NO_LOCK
	locked = true;
#else
	if
	:: holder[lock_of(k)] == 0 || holder[lock_of(k)] == me ->
		holder[lock_of(k)] = me;
		holds[lock_of(k)]++;
		locked = true
	:: else
	fi
#endif
}

/* record_look(): at[me], and rival[me] for who is changing that, or inserting. */
inline record_look()
{
	at[me] = NONE;
	rival[me] = 0;
	for (i : 0 .. SLOTS - 1) {
		if
		:: heap[i].key != k || (heap[i].xmax == me && !heap[i].pinned)
		:: heap[i].key == k && heap[i].xmin != 0 && heap[i].xmin != me ->
			rival[me] = heap[i].xmin
		:: else ->
			at[me] = i;
			if
			:: heap[i].xmax != 0 && heap[i].xmax != me && !heap[i].pinned ->
				rival[me] = heap[i].xmax
			:: else
			fi
		fi
	}
	met = (rival[me] != 0)
}

/* IdemLook.changed: the key has changed since our snapshot was taken. */
#if defined(SNAPSHOTS) && !defined(NO_SNAPSHOT_RULE)
#define look_changed	(fixed[me] && (changed[me] & (1 << k)) != 0)
#else
#define look_changed	false
#endif

/* claim_is_own_lease(): the same holder asks for his live lease again. */
#ifdef HOLDERS
#define is_own_lease(s)	(leased && heap[s].response == me)
#else
#define is_own_lease(s)	false
#endif

/* claim_hear(): what the row says. */
inline claim_hear()
{
	outcome = OPEN;
	if
	:: look_changed -> outcome = CHANGED
	:: !look_changed && at[me] == NONE
	:: !look_changed && at[me] != NONE && !is_live(at[me])
	:: !look_changed && at[me] != NONE && is_live(at[me]) &&
		heap[at[me]].state == FINISHED ->
		outcome = REPLAYED;
		check_replay(heap[at[me]].response)
#ifdef LEASES
	:: !look_changed && at[me] != NONE && is_live(at[me]) &&
		heap[at[me]].state == RETRY ->
		outcome = (heap[at[me]].due -> OPEN : LATER)
	:: !look_changed && at[me] != NONE && is_live(at[me]) &&
		heap[at[me]].state == LEASED ->
		if
		:: !heap[at[me]].due && !is_own_lease(at[me]) -> outcome = BUSY
		:: heap[at[me]].due && heap[at[me]].takeover == HOLD -> outcome = HELD
		:: heap[at[me]].due && heap[at[me]].takeover == FAIL -> outcome = GONE
		:: else
		fi
#endif
	fi
}

/*
 * claim_decide_next().  With outcome OPEN the lock is held, the row under the claim,
 * if there is one, is at[me] and pinned.
 */
inline claim_decide()
{
	locked = false;
	do
	::	d_step {
			if
			:: !locked -> lock_key_try()
			:: else
			fi
		};
#ifdef TRY_MEANS_DONE
		if
		:: d_step { !locked -> outcome = REPLAYED; check_replay(answer[k]) };
			break
		:: else
		fi;
#endif
		atomic {
			d_step { record_look(); claim_hear() };
#ifdef MISS
			if
			:: true
			:: d_step { at[me] = NONE; rival[me] = 0; met = false; outcome = OPEN }
			fi
#endif
		};
		if
		:: outcome == CHANGED ->
			d_step { witness(W_SNAPSHOT); raised = true };
			break
		:: outcome != CHANGED && outcome != OPEN ->
			if
			:: locked -> give_back()
			:: else
			fi;
			locked = false;
			break
		:: outcome == OPEN && !locked ->
			wait_lock(locked);
			if
			:: !locked -> outcome = BUSY; break
			:: else
			fi
		:: outcome == OPEN && locked && met ->
			d_step { witness(W_RIVAL) };
#ifdef WAITS_WITH_LOCK
			wait_rival(got);
#else
			give_back();
			locked = false;
			wait_rival(got);
#endif
			if
			:: !got -> outcome = BUSY; break
			:: else
			fi
		:: else ->
			if
			:: at[me] == NONE -> break
			:: else
			fi;
			/* record_pin(), record_locker() */
			if
			:: d_step {
					is_mine(at[me]) ->
#ifndef NO_PIN
					heap[at[me]].xmax = me;
					heap[at[me]].pinned = true;
#endif
					witness(W_OVER)
				};
				break
			:: d_step { is_gone(at[me]) -> skip }
			:: d_step {
					!is_mine(at[me]) && !is_gone(at[me]) ->
					witness(W_BUSY_ROW);
					rival[me] = heap[at[me]].xmax
				};
				give_back();
				locked = false;
				wait_rival(got);
				if
				:: !got -> outcome = BUSY; break
				:: else
				fi
			fi
		fi
	od
#ifdef SNAPSHOTS
	/* what may be claimed is not there for our snapshot, either */
	; assert(raised || outcome != OPEN || !fixed[me] || saw[me] == 0)
#endif
}

/* ----------------------------------------------------------------
 *						record.c: writing
 * ----------------------------------------------------------------
 */

inline new_row(slot, what, its_response)
{
	find_slot(slot);
	heap[slot].key = k;
	heap[slot].xmin = me;
	heap[slot].state = what;
	heap[slot].response = its_response
#ifdef LEASES
	;
	heap[slot].token = new_token;
	heap[slot].takeover = new_takeover;
	heap[slot].generation = new_generation;
	heap[slot].due = new_due
#endif
}

/* record_insert(): waits for an uncommitted duplicate; a committed one is 40001 */
inline record_insert(what, its_response, slot)
{
	do
	::	d_step {
			check_unique(clash);
			if
			:: !clash && rival[me] == 0 -> new_row(slot, what, its_response)
			:: else
			fi;
			got = (!clash && rival[me] == 0)
		};
		if
		:: got -> break
		:: !got && clash ->
			d_step {
				clash = false;
				printf("-- %d: duplicate of key %d, 40001\n", me, k);
				witness(W_CLASH);
				raised = true
			};
			break
		:: else ->
			wait_rival(got);
			if
			:: raised -> break
			:: else
			fi
		fi
	od
}

/*
 * record_replace() of the row at a slot.  got is false if it has changed.  A row that
 * somebody else has just put there is invisible to us, an internal error.
 */
inline record_replace(slot, what, its_response)
{
	do
	:: d_step {
			is_mine(slot) && (heap[slot].xmin == 0 || heap[slot].xmin == me) ->
			heap[slot].xmax = me;
			heap[slot].pinned = false;
			new_row(slot, what, its_response);
			got = true
		};
		break
	:: d_step { is_gone(slot) -> got = false }; break
	:: d_step {
			heap[slot].key != 0 && heap[slot].xmin != 0 && heap[slot].xmin != me ->
			got = false;
			raised = true
		};
		break
	:: d_step {
			!is_mine(slot) && !is_gone(slot) &&
			(heap[slot].xmin == 0 || heap[slot].xmin == me) ->
			rival[me] = heap[slot].xmax
		};
		wait_rival(got);
		if
		:: raised -> break
		:: else
		fi
	od
}

/* record_delete(): waits; got is false if the row has changed. */
inline record_delete(slot)
{
	do
	:: d_step {
			is_mine(slot) ->
			heap[slot].xmax = me;
			heap[slot].pinned = false;
			got = true
		};
		break
	:: d_step { is_gone(slot) -> got = false }; break
	:: d_step { !is_mine(slot) && !is_gone(slot) -> rival[me] = heap[slot].xmax };
		wait_rival(got);
		if
		:: raised -> break
		:: else
		fi
	od
}

/* ----------------------------------------------------------------
 *						finish.c: claims of this transaction
 * ----------------------------------------------------------------
 */

/* store_is_current(): SnapshotSelf sees something at that place */
#ifdef REWRITE
#define not_rewritten	(!rewritten)
#else
#define not_rewritten	true
#endif
#ifdef NO_RECHECK
#define is_current(s)	true
#else
#define is_current(s)	(not_rewritten && heap[s].key != 0 && \
	(heap[s].xmin == 0 || heap[s].xmin == me) && \
	(heap[s].xmax != me || heap[s].pinned))
#endif

/* finish_settle_claims(), with finish_row_is_there() */
inline finish_claim()
{
	if
	:: under == NONE -> record_insert(FINISHED, me, under)
	:: else ->
		atomic {
			if
			:: d_step { is_current(under) -> at[me] = under; got = true }
			:: else ->
				d_step {
					record_look();
					got = (at[me] == under);
					if
					:: at[me] != NONE && !got -> witness(W_LOST); raised = true
					:: else
					fi
				}
			fi
		};
		if
		:: raised
		:: !raised && got ->
			record_replace(under, FINISHED, me);
			if
			:: !got -> d_step { witness(W_LOST); raised = true }
			:: else
			fi
		:: else -> record_insert(FINISHED, me, under)
		fi;
		at[me] = NONE
	fi
}

/* ----------------------------------------------------------------
 *						lease.c, claim.c, finish.c: leases
 * ----------------------------------------------------------------
 */

#ifdef LEASES

/*
 * lease_new_token().  Tokens are random and compared for equality, so all that
 * counts is that nobody has or remembers this one.
 */
inline lease_new_token()
{
	new_token = 0;
	for (i : 1 .. SLOTS + BACKENDS) {
		n = 0;
		for (j : 0 .. SLOTS - 1) {
			if
			:: heap[j].token == i -> n = 1
			:: else
			fi
		}
		for (j : 1 .. BACKENDS) {
			if
			:: token[j] == i -> n = 1
			:: else
			fi
		}
		if
		:: new_token == 0 && n == 0 -> new_token = i
		:: else
		fi
	}
	assert(new_token != 0)
}

/* claim_hold_by_lease(): got is false if claim_decide() is to look again. */
inline claim_hold_by_lease(policy)
{
	d_step {
		under = at[me];
		lease_new_token();
		new_takeover = policy;
		new_generation = 0;
		new_due = false;
		if
		:: under != NONE && is_live(under) ->
			new_generation = heap[under].generation;
			witness(W_TAKEOVER)
		:: else
		fi
	};
	if
	:: under == NONE ->
		/* record_try_insert(): a duplicate is an answer */
		d_step {
			check_unique(clash);
			got = (!clash && rival[me] == 0);
			clash = false;
			if
			:: got -> new_row(under, LEASED, me)
			:: else
			fi
		}
	:: else -> record_replace(under, LEASED, me)
	fi;
	if
	:: got -> give_back(); token[me] = new_token
	:: else -> skip
	fi
}

/* lease_find(): the row at[me] that carries our token; ID003 if there is none. */
inline lease_find()
{
	record_look();
	if
	:: at[me] == NONE -> raised = true
	:: at[me] != NONE && !is_live(at[me]) -> raised = true
#ifdef NO_FENCE
#define has_token(s)	true
#else
#define has_token(s)	(heap[s].token == token[me])
#endif
	:: at[me] != NONE && is_live(at[me]) && !has_token(at[me]) ->
		printf("-- %d: token %d is refused, ID003\n", me, token[me]);
		witness(W_STALE);
		raised = true
	:: else ->
		new_token = heap[at[me]].token;
		new_takeover = heap[at[me]].takeover;
		new_generation = heap[at[me]].generation;
		new_due = heap[at[me]].due
	fi
}

/* lease_change(), a lease that runs anew; got is false if the record is settled. */
inline lease_change(what, its_response)
{
	do
	::	d_step {
			lease_find();
			new_due = false;
			got = (!raised && heap[at[me]].state == LEASED)
		};
		if
		:: !got -> break
		:: else
		fi;
		record_replace(at[me], what, its_response);
		if
		:: atomic { got && !raised -> printf("-- %d: writes with token %d\n", me, token[me]) };
			break
		:: raised -> break
		:: else
		fi
	od
}

/* lease_delete(): ID002 if the record is settled. */
inline lease_delete()
{
	do
	::	d_step {
			lease_find();
			if
			:: !raised && heap[at[me]].state != LEASED -> raised = true
			:: else
			fi
		};
		if
		:: raised -> break
		:: else
		fi;
		record_delete(at[me]);
		if
		:: got || raised -> break
		:: else
		fi
	od
}

/* lease_guard(): ID002 if the record is settled. */
inline lease_guard()
{
	do
	::	d_step {
			lease_find();
			if
			:: !raised && heap[at[me]].state != LEASED -> raised = true
			:: else
			fi
		};
		if
		:: raised -> break
		:: else
		fi;
		if
		:: d_step {
				is_mine(at[me]) ->
#ifndef NO_GUARD_PIN
				heap[at[me]].xmax = me;
				heap[at[me]].pinned = true;
#endif
				printf("-- %d: guards with token %d\n", me, token[me])
			};
			break
		:: d_step { is_gone(at[me]) -> skip }
		:: d_step {
				!is_mine(at[me]) && !is_gone(at[me]) ->
				witness(W_BUSY_ROW);
				rival[me] = heap[at[me]].xmax
			};
			wait_rival(got);
			if
			:: raised -> break
			:: else
			fi
		fi
	od
}

/* No stale holder: what is committed under a token is committed by its holder. */
inline check_fence()
{
	printf("-- %d: COMMIT under token %d\n", me, token[me]);
	n = 0;
	for (i : 0 .. SLOTS - 1) {
		if
		:: heap[i].key == k && heap[i].xmin == 0 && heap[i].token == token[me] -> n = 1
		:: else
		fi
	}
	assert(n == 1)
}

#endif							/* LEASES */

/* ----------------------------------------------------------------
 *						Ghosts
 * ----------------------------------------------------------------
 */

/* Once: an execution is committed. */
inline count_effect(its_response)
{
	effects[k]++;
	printf("-- %d: EXECUTION %d of key %d is committed\n", me, effects[k], k);
	assert(effects[k] <= 1);
	answer[k] = its_response
}

/* This life of a key is over: what was done may be done again. */
inline end_life(of_key)
{
	answer[of_key] = 0;
	effects[of_key] = 0;
#ifdef SNAPSHOTS
	for (j : 1 .. BACKENDS) {
		saw[j] = 0
	}
#endif
}

/*
 * All or nothing: of each key there is at most one committed row that counts, and it is
 * finished if and only if an execution is committed, whose response it has.
 */
inline audit()
{
	for (j : 1 .. KEYS) {
		n = NONE;
		for (i : 0 .. SLOTS - 1) {
			if
			:: heap[i].key == j && heap[i].xmin == 0 && is_live(i) ->
				assert(n == NONE);
				n = i
			:: else
			fi
		}
		if
		:: n != NONE && heap[n].state == FINISHED ->
			assert(effects[j] == 1 && heap[n].response == answer[j])
		:: else -> assert(effects[j] == 0)
		fi
	}
	skip
}
