/*
 * batch.pml
 *	  Batches: keys claimed in one order, held by locks up to a cap and past it by
 *	  rows written ahead.  They do not deadlock, and each key is done once.
 *
 * Clients 1 and 2 claim keys 1 and 2 in one transaction, which may hold CAP keys by
 * locks; client 3 claims key 2 by itself.  Each repeats until it has all its answers.
 *
 *	CAP				default 1: key 1 is held by its lock, key 2 by its row
 *	MISHAPS			backends killed
 *	UNSORTED		client 2 takes its keys in the order given: 2, 1
 *	CLEAN			nobody may be raised a 40001 or a deadlock
 *	AHEAD_UNLOCKED	locks are given back before the rows are written
 *	NO_AHEAD		past the cap nothing is written until the finish
 *	COLLISION		both keys are on one lock
 */

#define KEYS		2
#define SLOTS		6
#define CLIENTS		3
#ifndef MISHAPS
#define MISHAPS		1
#endif
#ifndef CAP
#define CAP			1
#endif
#ifdef CLEAN
#define NO_DEADLOCK
#endif

#include "protocol.pml"

byte answered;
byte mishaps = MISHAPS;

#ifdef LIVENESS
ltl settled { <> (answered == CLIENTS) }
#endif

mtype = { CLAIMED, CLAIMED_AHEAD };

typedef Claim {
	mtype state;				/* 0: not claimed */
	byte under;					/* the row that holds it, or NONE */
};

proctype client(byte me; byte first; byte last)
{
	Claim claims[KEYS + 1];
	byte k, under = NONE, nlocked, m;
	mtype outcome;
	bit locked, raised, met, got, clash;

begin:
	atomic {
		outcome = 0; locked = false; raised = false; met = false; got = false; clash = false;
		under = NONE; nlocked = 0;
		for (m : 1 .. KEYS) {
			claims[m].state = 0;
			claims[m].under = NONE
		}
		k = first;
		open[me] = true
	};
	{
		/* idem_claim_many() */
		do
		::	claim_decide();
			if
			:: raised -> goto rollback
			:: !raised && outcome == OPEN ->
				/* claim_hold() */
				d_step {
					printf("-- %d: claims key %d\n", me, k);
					at[me] = NONE;
					claims[k].state = (nlocked < CAP -> CLAIMED : CLAIMED_AHEAD);
					nlocked = (nlocked < CAP -> nlocked + 1 : nlocked)
				};
#ifdef AHEAD_UNLOCKED
				if
				:: claims[k].state == CLAIMED_AHEAD -> give_back()
				:: else
				fi
#endif
			:: else
			fi;
			if
			:: k == last -> break
			:: else -> k = last
			fi
		od;

		/* claim_write_ahead() */
		k = first;
		do
		:: atomic {
				claims[k].state == CLAIMED_AHEAD ->
				printf("-- %d: writes key %d ahead\n", me, k);
				witness(W_AHEAD)
			};
#ifndef NO_AHEAD
			record_insert(AHEAD, 0, under);
			if
			:: raised -> goto rollback
			:: else
			fi;
			claims[k].under = under;
#endif
#ifndef AHEAD_UNLOCKED
			give_back();
#endif
			if
			:: k == last -> break
			:: else -> k = last
			fi
		:: claims[k].state != CLAIMED_AHEAD ->
			if
			:: k == last -> break
			:: else -> k = last
			fi
		od;

		/* the work, and idem_finish_many(): the rows that are there, then the others */
		k = first;
		do
		::	under = claims[k].under;
			if
			:: claims[k].state != 0 && under != NONE -> finish_claim()
			:: else
			fi;
			if
			:: raised -> goto rollback
			:: !raised && k == last -> break
			:: else -> k = last
			fi
		od;
		k = first;
		do
		::	under = NONE;
			if
			:: claims[k].state != 0 && claims[k].under == NONE -> finish_claim()
			:: else
			fi;
			if
			:: raised -> goto rollback
			:: !raised && k == last -> break
			:: else -> k = last
			fi
		od;

		atomic {
			commit_rows(me);
			printf("-- %d: COMMIT\n", me);
			for (m : 1 .. KEYS) {
				if
				:: claims[m].state != 0 -> k = m; count_effect(me)
				:: else
				fi
			}
			audit()
		};
		d_step { free_locks(me) }
	} unless {
		d_step { killed[me] -> killed[me] = false; printf("-- %d: is killed\n", me) };
		raised = false;
		goto rollback
	};
	goto done;

rollback:
	atomic {
#ifdef CLEAN
		assert(!raised);
#endif
		abort_rows(me);
		printf("-- %d: ROLLBACK\n", me);
		audit()
	};
	d_step { free_locks(me) };
	goto begin;

done:
	atomic {
		killed[me] = false;
		outcome = 0; locked = false; met = false; got = false; under = NONE; nlocked = 0; k = 0; m = 0;
		for (m : 1 .. KEYS) {
			claims[m].state = 0;
			claims[m].under = NONE
		}
		answered++
	}
}

#include "others.pml"

init {
	atomic {
		run client(1, 1, 2);
#ifdef UNSORTED
		run client(2, 2, 1);
#else
		run client(2, 1, 2);
#endif
		run client(3, 2, 2)
	}
}
