/*
 * lease.pml
 *	  Leases: claimed in one transaction, finished in another, and taken over if
 *	  they run out in between.  No former holder gets anything committed.
 *
 * Each client claims key 1 until it is claimed or there is an answer.  With a lease
 * it goes on in a transaction of its own: guard, work and finish; or guard and
 * work, and the finish in the next one; or it renews, fails or releases the lease.  Whoever
 * is killed may remember the token and try again, or start afresh, as somebody
 * else would.
 *
 *	CLIENTS			default 2
 *	TICKS			how often a lease may run out
 *	EXPIRIES		how often a record may reach its expiry
 *	MISHAPS			backends killed, leases renewed, failed and released, in all
 *	POLICY			RERUN, HOLD or FAIL; default RERUN.  With HOLD somebody resolves.
 *	TRANSACTIONAL	a claim may also be one without a lease
 *	HOLDERS			a client gets its own live lease again, with a new token
 *	JANITOR, FORGET	as in claim.pml
 *	NO_GUARD		the work is committed with the finish, but without a guard
 *	NO_RESOLVER		nobody resolves what is held
 */

#define LEASES
#ifndef CLIENTS
#define CLIENTS		2
#endif
#ifndef MISHAPS
#define MISHAPS		1
#endif
#ifndef TICKS
#define TICKS		1
#endif
#ifndef EXPIRIES
#define EXPIRIES	0
#endif
#ifndef POLICY
#define POLICY		RERUN
#endif

#include "protocol.pml"

#define RESOLVER	5

byte answered;
byte mishaps = MISHAPS;
byte ticks = TICKS;
byte expiries = EXPIRIES;

#ifdef LIVENESS
ltl settled { <> (answered == CLIENTS) }
#endif

proctype client(byte me)
{
	byte k = 1, under = NONE, new_token, new_generation;
	mtype outcome, new_takeover;
	bit locked, raised, met, got, clash, leased, works, guarded, over, new_due;

begin:
	atomic {
		outcome = 0; locked = false; raised = false; met = false; got = false;
		clash = false; works = false; guarded = false; over = false;
		under = NONE; new_token = 0; new_takeover = 0; new_generation = 0; new_due = 0;
		token[me] = 0;
		leased = true;
#ifdef TRANSACTIONAL
		if
		:: leased = true
		:: leased = false
		fi;
#endif
		open[me] = true
	};
	{
		do
		::	claim_decide();
			if
			:: raised -> goto rollback
			:: !raised && (outcome == BUSY || outcome == LATER || outcome == HELD) ->
				goto nothing
			:: !raised && (outcome == REPLAYED || outcome == GONE) -> goto told
			:: !raised && outcome == OPEN && !leased -> break
			:: else ->
				claim_hold_by_lease(POLICY);
				if
				:: raised -> goto rollback
				:: !raised && !got		/* look again */
				:: else -> break
				fi
			fi
		od;
		if
		:: !leased ->
			d_step {
				printf("-- %d: claimed for this transaction\n", me);
				under = at[me];
				at[me] = NONE
			};
			finish_claim();
			if
			:: raised -> goto rollback
			:: else
			fi
		:: else -> printf("-- %d: claimed, token %d\n", me, token[me])
		fi;
		d_step {
			commit_rows(me);
			printf("-- %d: COMMIT\n", me);
			if
			:: !leased -> count_effect(me)
			:: else
			fi;
			audit()
		};
		d_step { free_locks(me) };
		if
		:: !leased -> goto done
		:: else
		fi
	} unless {
		d_step { killed[me] -> killed[me] = false; printf("-- %d: is killed\n", me) };
		if
		:: goto rollback
		:: token[me] != 0 -> goto retry
		fi
	};

work:
	atomic {
		outcome = 0; locked = false; met = false; got = false; clash = false; works = false; over = false;
		under = NONE; raised = false;
		new_token = 0; new_takeover = 0; new_generation = 0; new_due = 0;
		open[me] = true
	};
	{
		if
		::	/* the work is committed with the finish */
#ifndef NO_GUARD
			lease_guard();
#endif
			if
			:: raised
			:: !raised -> works = true; lease_change(FINISHED, me)
			fi
		:: !guarded -> guarded = true;
			/* the work is committed before it */
			lease_guard();
			got = true
		:: guarded ->
			/* and then the finish, which may be repeated */
			lease_change(FINISHED, me);
			works = (!raised && got);
			over = !works
		:: d_step { mishaps > 0 -> mishaps-- };
			lease_change(LEASED, me);		/* idem_renew() */
			raised = (raised || !got)
		:: d_step { mishaps > 0 -> mishaps-- };
			lease_change(RETRY, 0);			/* idem_fail() */
			raised = (raised || !got);
			over = true
		:: d_step { mishaps > 0 -> mishaps-- };
			lease_delete();					/* idem_release() */
			over = true
		fi;
		if
		:: raised -> goto rollback
		:: !raised && !got && heap[at[me]].state != FINISHED -> goto rollback
		:: !raised && !got && heap[at[me]].state == FINISHED ->
			/* finished with this token before: the stored response */
			d_step { witness(W_SECOND); check_replay(heap[at[me]].response) }
		:: else
		fi;
		d_step {
			check_fence();
			commit_rows(me);
			if
			:: works -> count_effect(me)
			:: else
			fi;
			audit()
		};
		d_step { free_locks(me) };
		if
		:: works -> goto done
		:: !works && over -> goto begin
		:: else -> goto work
		fi
	} unless {
		d_step { killed[me] -> killed[me] = false; printf("-- %d: is killed\n", me) };
		/* forgets the token, or not */
		if
		:: goto rollback
		:: goto retry
		fi
	};

told:
	atomic { abort_rows(me); free_locks(me) };
	goto done;

nothing:
	atomic { abort_rows(me); free_locks(me) };
	goto begin;

retry:
	atomic { abort_rows(me); printf("-- %d: ROLLBACK, token %d\n", me, token[me]); audit() };
	d_step { free_locks(me) };
	goto work;

rollback:
	atomic { abort_rows(me); printf("-- %d: ROLLBACK\n", me); audit() };
	d_step { free_locks(me) };
	goto begin;

done:
	atomic {
		killed[me] = false; token[me] = 0;
		outcome = 0; locked = false; met = false; got = false; works = false; under = NONE;
		leased = false; guarded = false; over = false;
		new_token = 0; new_takeover = 0; new_generation = 0; new_due = 0;
		answered++
	}
}

#define is_held(s)	(heap[s].key == k && heap[s].xmin == 0 && \
	heap[s].state == LEASED && heap[s].due && heap[s].takeover == HOLD)

/* idem_resolve(): has the work been done?  No: again.  Yes: by hand, that is here. */
#ifndef NO_RESOLVER
active proctype resolver()
{
	byte me = RESOLVER, k = 1, new_token, new_generation;
	mtype new_takeover;
	bit raised, met, got, new_due, reopen;

end:
	do
	:: d_step { is_held(0) || is_held(1) || is_held(2) || is_held(3) -> open[me] = true };
		if
		:: reopen = true
		:: reopen = false
		fi;
		d_step {
			record_look();
			if
			:: at[me] != NONE && heap[at[me]].state == LEASED &&
				heap[at[me]].due && heap[at[me]].takeover == HOLD ->
				lease_new_token();
				new_takeover = (reopen -> RERUN : HOLD);
				new_generation = heap[at[me]].generation;
				new_due = true
			:: else -> raised = true		/* ID004 */
			fi
		};
		if
		:: !raised && reopen -> record_replace(at[me], LEASED, 0)
		:: !raised && !reopen -> record_replace(at[me], FINISHED, me)
		:: else
		fi;
		if
		:: !raised && got ->
			d_step {
				commit_rows(me);
				printf("-- held key is resolved\n");
				if
				:: !reopen -> count_effect(me)
				:: else
				fi;
				audit()
			}
		:: else -> d_step { abort_rows(me) }
		fi;
		d_step {
			free_locks(me);
			raised = false; got = false; reopen = false;
			new_token = 0; new_takeover = 0; new_generation = 0; new_due = false
		}
	od
}
#endif

#include "others.pml"

init {
	atomic {
		run client(1);
		run client(2);
#if CLIENTS + 0 > 2
		run client(3);
#endif
	}
}
