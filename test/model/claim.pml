/*
 * claim.pml
 *	  Transactional claims: several clients, one operation; it is done once.
 *
 * Each client repeats claim, work, finish, commit until it has its answer: the
 * transaction was committed, or the claim was replayed.  MISHAPS is how often, in
 * all, something goes wrong: a backend is killed (at any step), a client
 * commits without a finish, or gives its claim up.  EXPIRIES is how often a
 * record may reach its expiry.  Who else is there depends on the switches:
 *
 *	CLIENTS			that many for key 1; default 2
 *	SNAPSHOTS		client 1 runs under REPEATABLE READ, the rest READ COMMITTED
 *	OTHER_KEY		one more for key 2, KEYS=2; COLLISION: on the same lock
 *	JANITOR			idem_expire
 *	FORGET			idem_forget of key 1, once; with FORGET_AND_CLAIM its transaction
 *					then claims the key, and finds that it has no use for it
 *	FOREIGN			somebody who does the work of key 1 and writes its record,
 *					without taking the lock or looking, once
 *	PREPARE			client 1 may end by PREPARE TRANSACTION, and asks again.  It is
 *					committed or rolled back, but with NO_COORDINATOR never.
 *	REWRITE			a client may rewrite the table before it finishes
 *	IMPATIENT		who waits may give up at any time
 *	MISS			a look may miss what is there
 */

#ifndef CLIENTS
#define CLIENTS		2
#endif
#ifndef MISHAPS
#define MISHAPS		1
#endif
#ifndef EXPIRIES
#define EXPIRIES	0
#endif

#include "protocol.pml"

#define PREPARED	5			/* the prepared transaction */
#ifdef OTHER_KEY
#define OTHERS		1
#else
#define OTHERS		0
#endif

byte answered;					/* clients that know */
byte mishaps = MISHAPS;
#if EXPIRIES > 0
byte expiries = EXPIRIES;
#endif

#ifdef LIVENESS
ltl settled { <> (answered == CLIENTS + OTHERS) }
#endif

#ifdef PREPARE
/*
 * PREPARE TRANSACTION: rows and locks go on without the backend, and who waits goes on
 * waiting.
 */
inline hand_over()
{
	for (i : 0 .. SLOTS - 1) {
		if
		:: heap[i].xmin == me -> heap[i].xmin = PREPARED
		:: else
		fi;
		if
		:: heap[i].xmax == me -> heap[i].xmax = PREPARED
		:: else
		fi
	}
	for (i : 1 .. KEYS) {
		if
		:: holder[i] == me -> holder[i] = PREPARED
		:: else
		fi
	}
	for (i : 1 .. BACKENDS) {
		if
		:: awaits[i] == me -> awaits[i] = PREPARED
		:: else
		fi;
		if
		:: rival[i] == me -> rival[i] = PREPARED
		:: else
		fi
	}
	open[PREPARED] = true;
	printf("-- %d: PREPARE TRANSACTION\n", me);
	free_locks(me)
}
#endif

#ifdef REWRITE
/* The first two rows change places. */
#define swap(field)	n = heap[0].field; heap[0].field = heap[1].field; \
	heap[1].field = n

inline swap_rows()
{
	swap(key); swap(xmin); swap(xmax); swap(pinned); swap(state);
	swap(response); swap(expired)
}

#endif

#ifdef EARLY_RELEASE
inline free_key_locks()
{
	for (i : 1 .. KEYS) {
		if
		:: holder[i] == me -> holder[i] = 0; holds[i] = 0
		:: else
		fi
	}
}
#endif

proctype client(byte me; byte k; bit one_snapshot)
{
	mtype outcome;
	bit locked, raised, met, got, clash, finished;
	byte under = NONE;
#ifdef REWRITE
	bit rewritten;
#endif

begin:
	atomic {
		outcome = 0; locked = false; raised = false; met = false; got = false;
		clash = false; finished = false; under = NONE;
		open[me] = true;
#ifdef REWRITE
		rewritten = false;
#endif
#ifdef SNAPSHOTS
		fixed[me] = one_snapshot;
		saw[me] = (one_snapshot -> answer[k] : 0);
#endif
		printf("-- %d: BEGIN\n", me)
	};
	{
		claim_decide();
		if
		:: raised || outcome == BUSY -> goto rollback
		:: !raised && outcome == REPLAYED ->
			printf("-- %d: replayed\n", me);
			goto told
		:: else
		fi;

		d_step {
			printf("-- %d: claimed\n", me);
			under = at[me];
			at[me] = NONE
		};
#ifdef REWRITE
		/* another order of rows, in a file of its own */
		if
		:: d_step {
				mishaps > 0 && heap[0].key != 0 && heap[1].key != 0 &&
				(me == 1 || !open[1]) && (me == 2 || !open[2]) &&
				(me == 3 || !open[3]) && !open[OTHER] ->
				mishaps--;
				swap_rows();
				rewritten = true
			}
		:: true
		fi;
#endif

		/* the work, then */
		if
		:: finish_claim();
			if
			:: raised -> goto rollback
			:: else -> finished = true
			fi
		:: d_step { mishaps > 0 -> mishaps--; printf("-- %d: does not finish\n", me) };
#ifndef NO_COMMIT_CHECK
			goto rollback			/* ID005 */
#endif
		:: d_step { mishaps > 0 -> mishaps--; printf("-- %d: releases\n", me) };
			d_step { commit_rows(me); audit() };
			d_step { free_locks(me) };
			goto begin
		fi;

#ifdef PREPARE
		if
		:: d_step { me == 1 && !open[PREPARED] -> hand_over() };
			goto begin				/* the answer is lost; ask again */
		:: true
		fi;
#endif

#ifdef EARLY_RELEASE
		d_step { free_key_locks() };
#endif
		d_step {
			commit_rows(me);
			printf("-- %d: COMMIT\n", me);
			count_effect(me);
			audit()
		};
		d_step { free_locks(me) }
	} unless {
		d_step { killed[me] -> killed[me] = false; printf("-- %d: is killed\n", me) };
		goto rollback
	};
	goto done;

told:
	atomic { abort_rows(me); at[me] = NONE };
	d_step { free_locks(me) };
	goto done;

rollback:
	atomic { abort_rows(me); printf("-- %d: ROLLBACK\n", me); audit() };
	d_step { free_locks(me) };
	goto begin;

done:
	atomic {
		killed[me] = false;
		outcome = 0; locked = false; met = false; got = false; finished = false; under = NONE;
#ifdef SNAPSHOTS
		saw[me] = 0;
#endif
		answered++
	}
}

#ifdef FOREIGN
/* A logical replication worker, say: the row and what belongs to it. */
active proctype foreign()
{
	byte me = OTHER, k = 1, slot = NONE;
	bit raised, got, clash;

	open[me] = true;
	record_insert(FINISHED, me, slot);
	if
	:: raised -> d_step { abort_rows(me) }
	:: !raised -> d_step { commit_rows(me); count_effect(me); audit() }
	:: !raised -> d_step { abort_rows(me) }
	fi;
	d_step { free_locks(me) }
}
#endif

#if defined(PREPARE) && !defined(NO_COORDINATOR)
/* Ends prepared transactions, either way. */
active proctype coordinator()
{
	byte me = PREPARED, k = 1;

end:
	do
	:: open[PREPARED] ->
		if
		:: d_step {
				commit_rows(me);
				printf("-- COMMIT PREPARED\n");
				count_effect(1);
				audit()
			}
		:: d_step { mishaps > 0 -> mishaps--; abort_rows(me); audit() }
		fi;
		d_step { free_locks(me) }
	od
}
#endif

#include "others.pml"

init {
	atomic {
#ifdef SNAPSHOTS
		run client(1, 1, true);
#else
		run client(1, 1, false);
#endif
		run client(2, 1, false);
#if CLIENTS + 0 > 2
		run client(3, 1, false);
#endif
#ifdef OTHER_KEY
		run client(3, 2, false);
#endif
	}
}
