/*-------------------------------------------------------------------------
 *
 * lock.c
 *	  Lock tags, and waiting with a limit.
 *
 * A key is locked by a transaction-level advisory lock, exclusively, under a
 * class that SQL cannot reach (pg_advisory_lock() only makes classes 1 and 2).
 * Being transaction-level it is left alone by DISCARD ALL, by
 * pg_advisory_unlock_all() and so by every connection pooler, is moved to the
 * prepared transaction by PREPARE TRANSACTION, and is released after the commit
 * has become visible: whoever waited for it sees the winner's row.
 *
 * The lock must live exactly as long as the memory of the claim (pending.c),
 * which goes by subtransactions.  So it is always taken and given back under
 * CurTransactionResourceOwner.  Under CurrentResourceOwner it might belong to
 * a portal: a cursor opened before a savepoint and fetched after it would then
 * keep the lock of a claim whose savepoint was rolled back.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "compat.h"
#include "lock.h"

static bool lock_key_acquire(uint64 hash, bool dont_wait);
static void lock_key_acquire_blocking(void *arg);
static bool lock_wait_for(const IdemWait *wait,
						  void (*acquire) (void *arg), void *arg);

static inline void
lock_tag(LOCKTAG *tag, uint64 hash, IdemLockClass class)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId,
						 (uint32) (hash >> 32), (uint32) hash, class);
}

/*
 * Deadlines go by the monotonic clock, so that a step of the system's clock does
 * not move them.  What is spent in the lock queue until then is up to PostgreSQL's
 * lock_timeout, which such a step does prolong.  In microseconds.
 */
int64
lock_clock(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/* How long to wait from now on: not at all, if for no time. */
void
lock_wait_at_most(IdemWait *wait, int64 usecs)
{
	wait->mode = usecs > 0 ? IDEM_WAIT_UNTIL : IDEM_WAIT_NONE;
	wait->deadline = usecs > 0 ? lock_clock() + usecs : 0;
}

/* Milliseconds that are left, rounded up; at most INT_MAX. */
static long
lock_wait_left(const IdemWait *wait)
{
	int64		usecs = wait->deadline - lock_clock();

	return (long) Min((Max(usecs, 0) + 999) / 1000, INT_MAX);
}

/* Take the lock of a key if it is free.  False means busy, nothing else. */
bool
lock_key_try(uint64 hash)
{
	const bool	dont_wait = true;

	return lock_key_acquire(hash, dont_wait);
}

/*
 * Take the lock of a key, waiting as the caller allows.  False if time ran
 * out; deadlock, cancel and the user's own timeouts raise their errors.
 */
bool
lock_key_wait(uint64 hash, const IdemWait *wait)
{
	return lock_wait_for(wait, lock_key_acquire_blocking, &hash);
}

/*
 * Give back what lock_key_try() or lock_key_wait() took in this very call.
 *
 * If this transaction held the lock before, it still does: each acquisition
 * is counted, per resource owner.
 */
void
lock_key_give_back(uint64 hash)
{
	const bool	session_lock = false;
	ResourceOwner saved = CurrentResourceOwner;
	LOCKTAG		tag;

	lock_tag(&tag, hash, IDEM_LOCK_KEY);
	CurrentResourceOwner = CurTransactionResourceOwner;
	LockRelease(&tag, ExclusiveLock, session_lock);
	CurrentResourceOwner = saved;
}

/*
 * On error CurrentResourceOwner stays as set here; the abort that follows
 * sets it anew, as it does for all code that borrows an owner.
 */
static bool
lock_key_acquire(uint64 hash, bool dont_wait)
{
	const bool	session_lock = false;
	ResourceOwner saved = CurrentResourceOwner;
	LOCKTAG		tag;
	LockAcquireResult result;

	lock_tag(&tag, hash, IDEM_LOCK_KEY);
	CurrentResourceOwner = CurTransactionResourceOwner;
	result = LockAcquire(&tag, ExclusiveLock, session_lock, dont_wait);
	CurrentResourceOwner = saved;

	return result != LOCKACQUIRE_NOT_AVAIL;
}

/* Take the lock of a group of messages, to the end of the (sub)transaction. */
void
lock_group(uint64 hash)
{
	const bool	session_lock = false;
	const bool	dont_wait = false;
	ResourceOwner saved = CurrentResourceOwner;
	LOCKTAG		tag;

	lock_tag(&tag, hash, IDEM_LOCK_GROUP);
	CurrentResourceOwner = CurTransactionResourceOwner;
	(void) LockAcquire(&tag, ExclusiveLock, session_lock, dont_wait);
	CurrentResourceOwner = saved;
}

static void
lock_key_acquire_blocking(void *arg)
{
	const bool	dont_wait = false;

	(void) lock_key_acquire(*(uint64 *) arg, dont_wait);
}

/*
 * Call acquire(arg), which may block in the lock manager, for as long as the
 * caller is ready to wait.  False if time ran out, and nothing was acquired.
 *
 * The limit is PostgreSQL's own lock_timeout, lowered for this one call, so
 * the lock queue and the deadlock detector work as ever.  Its error is
 * caught in an internal subtransaction, which costs no transaction ID unless
 * acquire() itself needs one.  If the user's lock_timeout is the shorter one
 * it is left alone and raises its error, as do cancel and statement_timeout:
 * only our limit turns into an answer.
 */
static bool
lock_wait_for(const IdemWait *wait, void (*acquire) (void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	if (wait->mode == IDEM_WAIT_FOREVER)
	{
		acquire(arg);
		return true;
	}

	while (wait->mode == IDEM_WAIT_UNTIL)
	{
		/* if it is INT_MAX, we may come here again */
		long		remaining = lock_wait_left(wait);
		char		limit[32];
		bool		ours;
		volatile bool acquired = false;

		if (remaining == 0)
			break;
		ours = LockTimeout <= 0 || remaining < LockTimeout;
		snprintf(limit, sizeof(limit), "%ld", remaining);

		BeginInternalSubTransaction(NULL);
		MemoryContextSwitchTo(context);
		PG_TRY();
		{
			int			guc_level = NewGUCNestLevel();

			if (ours)
				(void) set_config_option("lock_timeout", limit,
										 PGC_USERSET, PGC_S_SESSION,
										 GUC_ACTION_SAVE, true, 0, false);
			acquire(arg);
			AtEOXact_GUC(true, guc_level);
			acquired = true;

			/* what was acquired passes to the caller's transaction */
			ReleaseCurrentSubTransaction();
			MemoryContextSwitchTo(context);
			CurrentResourceOwner = owner;
		}
		PG_CATCH();
		{
			ErrorData  *error;

			MemoryContextSwitchTo(context);
			error = CopyErrorData();
			FlushErrorState();

			/* restores lock_timeout, too */
			RollbackAndReleaseCurrentSubTransaction();
			MemoryContextSwitchTo(context);
			CurrentResourceOwner = owner;

			if (!ours || error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
				ReThrowError(error);
			FreeErrorData(error);
		}
		PG_END_TRY();

		if (acquired)
			return true;
	}

	return false;
}

static void
lock_xact_acquire(void *arg)
{
	XactLockTableWait(*(TransactionId *) arg, NULL, NULL, XLTW_None);
}

/* Wait for the end of a transaction.  False if time ran out. */
bool
lock_xact_wait(TransactionId xid, const IdemWait *wait)
{
	return lock_wait_for(wait, lock_xact_acquire, &xid);
}

/*
 * Pause before looking at a lease again.  False if the caller is not ready to
 * wait for it, or time is up.
 *
 * The end of a lease is no event that one could wait for: it is a time, or an
 * update of the row by whoever holds the lease.  So we look again after pauses
 * that grow, from 2 ms to a quarter of a second, cut at the end of the lease
 * and of the caller's patience.
 */
bool
lock_pause(const IdemWait *wait, TimestampTz until, int pauses, IdemPause what)
{
	long		pause = Min(2L << Min(pauses, 7), 250L);
	long		left = wait->mode == IDEM_WAIT_UNTIL ? lock_wait_left(wait) : 0;
	long		leased;

	if (left == 0)
		return false;

	leased = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
	lock_sleep(Min(Min(pause, left), Max(leased, 1L)), what);
	CHECK_FOR_INTERRUPTS();
	return true;
}

/* Until the time is up, or somebody sets the latch of this process. */
void
lock_sleep(long msecs, IdemPause what)
{
	static const char *const names[] = {
		[IDEM_PAUSE_LEASE] = "IdemLease",
		[IDEM_PAUSE_QUEUE] = "IdemQueue",
		[IDEM_PAUSE_JANITOR] = "IdemJanitor"
	};
	static uint32 events[lengthof(names)] = {0};

	if (events[what] == 0)
		events[what] = WaitEventExtensionNew(names[what]);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 msecs, events[what]);
	ResetLatch(MyLatch);
}
