/*
 * others.pml
 *	  Who else is there, whatever the clients do.
 *
 * Backends 1 to 3 are clients; OTHER is the janitor, idem_forget or somebody foreign.
 */

/* Kills a backend, or does not. */
active proctype killer()
{
	do
	:: d_step { mishaps > 0 && open[1] && !killed[1] -> mishaps--; killed[1] = true }
	:: d_step { mishaps > 0 && open[2] && !killed[2] -> mishaps--; killed[2] = true }
#if CLIENTS + 0 > 2 || defined(OTHER_KEY)
	:: d_step { mishaps > 0 && open[3] && !killed[3] -> mishaps--; killed[3] = true }
#endif
	:: break
	od
}

/*
 * Time.  Records expire, leases run out, failures may be tried again.  A lease whose token
 * nobody remembers runs out in any case.
 */
#define expires(s)	expiries > 0 && heap[s].key != 0 && heap[s].xmin == 0 && \
	!heap[s].expired && may_expire(s) -> \
	heap[s].expired = true; expiries--; printf("-- key %d expires\n", heap[s].key); \
	if \
	:: heap[s].state == FINISHED -> n = heap[s].key; end_life(n) \
	:: else \
	fi
#ifndef LEASES
#define may_expire(s)	(heap[s].state == FINISHED)
#else
#define may_expire(s)	(heap[s].state == FINISHED || heap[s].due)
#define is_lost(s)	(token[1] != heap[s].token && token[2] != heap[s].token && \
	token[3] != heap[s].token)
#define runs_out(s)	heap[s].key != 0 && heap[s].xmin == 0 && !heap[s].due && \
	heap[s].state == LEASED && (ticks > 0 || is_lost(s)) -> \
	heap[s].due = true; ticks = (ticks > 0 -> ticks - 1 : 0); \
	printf("-- the lease with token %d runs out\n", heap[s].token)
#define comes_due(s)	heap[s].key != 0 && heap[s].xmin == 0 && !heap[s].due && \
	heap[s].state == RETRY -> heap[s].due = true
#endif

#if defined(LEASES) || EXPIRIES + 0 > 0
active proctype clock()
{
end:
	do
	:: d_step { expires(0) }
	:: d_step { expires(1) }
	:: d_step { expires(2) }
	:: d_step { expires(3) }
#ifdef LEASES
	:: d_step { runs_out(0) }
	:: d_step { runs_out(1) }
	:: d_step { runs_out(2) }
	:: d_step { runs_out(3) }
	:: d_step { comes_due(0) }
	:: d_step { comes_due(1) }
	:: d_step { comes_due(2) }
	:: d_step { comes_due(3) }
#endif
	od
}
#endif

#ifdef JANITOR
#define is_expired(s)	(heap[s].key != 0 && heap[s].xmin == 0 && \
	heap[s].expired && !is_live(s))

/* record_expire(): finds a row, and deletes that version if nobody has it */
active proctype janitor()
{
	byte me = OTHER, k;
#ifdef JANITOR_NO_RECHECK
	bit met;
#endif

end:
	do
	:: atomic {
			if
			:: d_step { is_expired(0) -> at[me] = 0 }
			:: d_step { is_expired(1) -> at[me] = 1 }
			:: d_step { is_expired(2) -> at[me] = 2 }
			:: d_step { is_expired(3) -> at[me] = 3 }
			fi;
			d_step { k = heap[at[me]].key; open[me] = true }
		};
		d_step {
#ifdef JANITOR_NO_RECHECK
			/* whatever the version is by now */
			if
			:: is_gone(at[me]) -> record_look()
			:: else
			fi;
#endif
			if
			:: at[me] != NONE && heap[at[me]].key != 0 && heap[at[me]].xmax == 0 ->
				witness(W_REMOVED);
				printf("-- janitor: removes a row of key %d\n", k);
				heap[at[me]].xmax = me
			:: else
			fi;
			at[me] = NONE
		};
		if
		:: d_step { commit_rows(me); audit() }
#ifndef LIVENESS
		:: d_step { abort_rows(me); audit() }
#endif
		fi;
		d_step { free_locks(me); k = 0 }
	od
}
#endif

#ifdef FORGET
/* idem_forget(): the lock only until the row is marked */
active proctype forgetter()
{
	byte me = OTHER, k = 1;
	bit locked, raised, got, met;

	open[me] = true;
	do
	::	wait_lock(locked);
		if
		:: !locked -> break
		:: else
		fi;
		d_step { record_look() };
		give_back();
		if
		:: met ->
			wait_rival(got);
			if
			:: raised -> break
			:: else
			fi
		:: !met && at[me] == NONE -> break
		:: else ->
			record_delete(at[me]);
			if
			:: got || raised -> break
			:: else
			fi
		fi
	od;
#ifdef FORGET_AND_CLAIM
	if
	:: !raised && got && at[me] != NONE ->
		wait_lock(locked);
		if
		:: locked -> give_back()
		:: else
		fi
	:: else
	fi;
#endif
	if
	:: !raised && got && at[me] != NONE ->
		d_step {
			at[me] = NONE;
			commit_rows(me);
			end_life(k);
			printf("-- key %d is forgotten\n", k);
			audit()
		}
	:: else -> d_step { abort_rows(me) }
	fi;
	d_step { free_locks(me) }
}
#endif
