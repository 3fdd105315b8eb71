/*
 * step.pml
 *	  Flows that resume: each step is committed once, and by the holder of the lease.
 *
 * The key is leased already.  Clients 1 and 2 have both its token, as two processes
 * that were given the same task; client 3 takes the key over when the lease has run
 * out.  Each goes through the same flow: for each step ask whether it is done; if
 * not, do it and finish it in one transaction; and at last finish the key.  Who is
 * refused starts again with a claim.
 *
 *	STEPS			default 1
 *	STARTED			the life of the key has its number (generation) already; else the
 *					first step gives it one
 *	TICKS			how often a lease may run out
 *	MISHAPS			backends killed
 *	CLIENTS			default 3; 2: nobody takes over
 *	STEP_UNGUARDED	idem_step_finish only looks whether the lease is ours
 *	STEP_LOOKS_EARLY	and looks whether the step is done before it has the row
 *	NEW_GENERATION	who waited for the first step numbers the life of the key once more
 *	NO_MEMO_INDEX	no unique index on the table of steps
 */

#define LEASES
#ifndef CLIENTS
#define CLIENTS		3
#endif
#ifndef STEPS
#define STEPS		1
#endif
#ifndef TICKS
#define TICKS		1
#endif
#ifndef MISHAPS
#define MISHAPS		0
#endif

/* idem_step: 0, who is writing the row, or DONE */
#define GENERATIONS	4
#define DONE		7
#define memo_of(g, s)	memo[(g) * STEPS + (s) - 1]

byte memo[(GENERATIONS + 1) * STEPS];
byte number[6];					/* what each backend has drawn for a life of the key */

#define COMMIT_MEMO(t)	end_memo(t, DONE)
#define ABORT_MEMO(t)	end_memo(t, 0)

inline end_memo(t, becomes)
{
	for (i : 0 .. (GENERATIONS + 1) * STEPS - 1) {
		if
		:: memo[i] == t -> memo[i] = becomes
		:: else
		fi
	}
	number[t] = 0
}

#include "protocol.pml"

byte answered;
byte mishaps = MISHAPS;
byte ticks = TICKS;
byte expiries = 0;
byte stepped[STEPS + 1];		/* ghost: executions of each step */

#ifdef LIVENESS
ltl settled { <> (answered == CLIENTS) }
#endif

/* The number of a life of the key: like a token, new if nobody has it. */
inline draw_number()
{
	number[me] = 0;
	for (i : 1 .. GENERATIONS) {
		n = 0;
		for (j : 0 .. SLOTS - 1) {
			if
			:: heap[j].generation == i -> n = 1
			:: else
			fi
		}
		for (j : 1 .. BACKENDS) {
			if
			:: number[j] == i -> n = 1
			:: else
			fi
		}
		for (j : 1 .. STEPS) {
			if
			:: memo_of(i, j) != 0 -> n = 1
			:: else
			fi
		}
		if
		:: number[me] == 0 && n == 0 -> number[me] = i
		:: else
		fi
	}
	assert(number[me] != 0)
}

/* lease_find(), which has to find a record in progress: ID003, ID002. */
inline find_in_progress()
{
	lease_find();
	if
	:: !raised && heap[at[me]].state != LEASED -> raised = true
	:: else
	fi
}

/* memo_look() */
#define is_done(s)	(new_generation != 0 && (memo_of(new_generation, s) == DONE || \
	memo_of(new_generation, s) == me))

/* idem_step_finish() */
inline idem_step_finish()
{
	d_step { find_in_progress(); early = (!raised && is_done(step)) };
	if
	:: raised
#ifdef STEP_UNGUARDED
	:: !raised && new_generation != 0
#else
	:: !raised && new_generation != 0 -> lease_guard()
#endif
	:: else ->
		/* lease_change(), step_begin_steps() */
		d_step { draw_number() };
		do
		:: d_step {
				find_in_progress();
				if
#ifdef NEW_GENERATION
				:: !raised -> new_generation = number[me]
#else
				:: !raised && new_generation == 0 -> new_generation = number[me]
#endif
				:: else
				fi
			};
			if
			:: raised -> break
			:: else
			fi;
			record_replace(at[me], LEASED, 0);
			if
			:: got || raised -> break
			:: else
			fi
		od
	fi;
	if
	:: raised
	:: else ->
#ifndef STEP_LOOKS_EARLY
		d_step { early = is_done(step) };
#endif
		if
		:: early -> d_step { witness(W_STEP_TWICE); raised = true }		/* ID002 */
		:: else -> memo_write()
		fi
	fi
}

/* memo_write(): the unique index lets one of them write */
inline memo_write()
{
	do
#ifdef NO_MEMO_INDEX
	:: memo_of(new_generation, step) = me; break
#else
	:: d_step { memo_of(new_generation, step) == 0 -> memo_of(new_generation, step) = me };
		break
	:: d_step {
			memo_of(new_generation, step) == DONE || memo_of(new_generation, step) == me ->
			raised = true
		};
		break
	:: d_step {
			memo_of(new_generation, step) != 0 && memo_of(new_generation, step) != me &&
			memo_of(new_generation, step) != DONE ->
			rival[me] = memo_of(new_generation, step)
		};
		wait_rival(got);
		if
		:: raised -> break
		:: else
		fi
#endif
	od
}

/* Ghost: a step that was executed is recorded in this life of the key, and only then. */
inline audit_steps()
{
	n = 0;
	for (i : 0 .. SLOTS - 1) {
		if
		:: heap[i].key == 1 && heap[i].xmin == 0 -> n = heap[i].generation
		:: else
		fi
	}
	for (j : 1 .. STEPS) {
		assert(stepped[j] == (n != 0 && memo_of(n, j) == DONE))
	}
	skip
}

proctype client(byte me)
{
	byte k = 1, step, under = NONE, new_token, new_generation;
	mtype outcome, new_takeover;
	bit locked, raised, met, got, clash, early, new_due;

	if
	:: me != 3 -> goto flow
	:: else
	fi;

begin:
	atomic {
		outcome = 0; locked = false; raised = false; met = false; got = false;
		clash = false; early = false; under = NONE;
		new_token = 0; new_takeover = 0; new_generation = 0; new_due = false;
		token[me] = 0;
		open[me] = true
	};
	{
		do
		::	claim_decide();
			if
			:: raised -> goto rollback
			:: !raised && (outcome == BUSY || outcome == LATER) -> goto nothing
			:: !raised && outcome == REPLAYED -> goto told
			:: else ->
				claim_hold_by_lease(RERUN);
				if
				:: raised -> goto rollback
				:: !raised && !got
				:: else -> break
				fi
			fi
		od;
		atomic {
			printf("-- %d: claimed, token %d\n", me, token[me]);
			commit_rows(me);
			audit();
			audit_steps()
		};
		d_step { free_locks(me) }
	} unless {
		d_step { killed[me] -> killed[me] = false; printf("-- %d: is killed\n", me) };
		goto rollback
	};

flow:
	step = 1;
next:
	atomic {
		outcome = 0; locked = false; raised = false; met = false; got = false;
		clash = false; early = false; under = NONE;
		new_token = 0; new_takeover = 0; new_generation = 0; new_due = false;
		open[me] = true
	};
	{
		if
		:: step <= STEPS ->
			/* idem_step() */
			d_step { find_in_progress(); early = (!raised && is_done(step)) };
			if
			:: raised -> goto rollback
			:: !raised && early ->
				d_step { witness(W_STEP); printf("-- %d: step %d is done\n", me, step) };
				d_step { free_locks(me); early = false };
				step++;
				goto next
			:: else
			fi;
			idem_step_finish();
			if
			:: raised -> goto rollback
			:: else
			fi;
			d_step {
				check_fence();
				commit_rows(me);
				stepped[step]++;
				printf("-- %d: EXECUTION %d of step %d under token %d\n", me,
					   stepped[step], step, token[me]);
				assert(stepped[step] <= 1);
				audit_steps()
			};
			d_step { free_locks(me) };
			step++;
			goto next
		:: else ->
			/* idem_finish(), with the rest of the work */
			lease_guard();
			if
			:: raised -> goto rollback
			:: else -> lease_change(FINISHED, me)
			fi;
			if
			:: raised -> goto rollback
			:: else
			fi;
			d_step {
				check_fence();
				commit_rows(me);
				count_effect(me);
				audit();
				audit_steps()
			};
			d_step { free_locks(me) };
			goto done
		fi
	} unless {
		d_step { killed[me] -> killed[me] = false; printf("-- %d: is killed\n", me) };
		goto rollback
	};

told:
	atomic { abort_rows(me); free_locks(me) };
	goto done;

nothing:
	atomic { abort_rows(me); free_locks(me) };
	goto begin;

rollback:
	atomic { abort_rows(me); printf("-- %d: ROLLBACK\n", me); audit(); audit_steps() };
	d_step { free_locks(me) };
	goto begin;

done:
	atomic {
		killed[me] = false; token[me] = 0; step = 0;
		outcome = 0; locked = false; met = false; got = false; early = false; under = NONE;
		new_token = 0; new_takeover = 0; new_generation = 0; new_due = false;
		answered++
	}
}

#include "others.pml"

init {
	atomic {
		heap[0].key = 1;
		heap[0].state = LEASED;
		heap[0].takeover = RERUN;
		heap[0].token = 1;
#ifdef STARTED
		heap[0].generation = 1;
#endif
		token[1] = 1;
		token[2] = 1;
		run client(1);
		run client(2);
#if CLIENTS + 0 > 2
		run client(3)
#endif
	}
}
