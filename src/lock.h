/*-------------------------------------------------------------------------
 *
 * lock.h
 *	  Lock tags, and waiting with a limit.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LOCK_H
#define IDEM_LOCK_H

#include "postgres.h"

#include "datatype/timestamp.h"

/*
 * Values of LOCKTAG's fourth field for advisory locks, shown by pg_locks as
 * objsubid.  There is no registry; these lie outside those seen in use.
 */
typedef enum IdemLockClass
{
	IDEM_LOCK_CORE_INT8 = 1,	/* PostgreSQL: pg_advisory_lock(bigint) */
	IDEM_LOCK_CORE_INT4 = 2,	/* PostgreSQL: pg_advisory_lock(int, int) */
	IDEM_LOCK_KEY = 0x4944,		/* one key; "ID" */
	IDEM_LOCK_MAINTENANCE = 0x4945, /* reserved for the janitor; "IE" */
	IDEM_LOCK_GROUP = 0x4946	/* one group of messages; "IF" */
} IdemLockClass;

/* How long a claim is ready to wait for other transactions. */
typedef enum IdemWaitMode
{
	IDEM_WAIT_FOREVER,			/* until the other transaction ends */
	IDEM_WAIT_NONE,				/* not at all */
	IDEM_WAIT_UNTIL				/* until the deadline */
} IdemWaitMode;

typedef struct IdemWait
{
	IdemWaitMode mode;
	int64		deadline;		/* for IDEM_WAIT_UNTIL, on a clock of lock.c */
} IdemWait;

/* What a pause is for: the wait event that pg_stat_activity shows from 17 on. */
typedef enum IdemPause
{
	IDEM_PAUSE_LEASE,			/* the end of a lease */
	IDEM_PAUSE_QUEUE,			/* a message */
	IDEM_PAUSE_JANITOR			/* the next round of the janitor */
} IdemPause;

extern int64 lock_clock(void);
extern void lock_wait_at_most(IdemWait *wait, int64 usecs);
extern bool lock_key_try(uint64 hash);
extern bool lock_key_wait(uint64 hash, const IdemWait *wait);
extern void lock_key_give_back(uint64 hash);
extern void lock_group(uint64 hash);
extern bool lock_xact_wait(TransactionId xid, const IdemWait *wait);
extern bool lock_pause(const IdemWait *wait, TimestampTz until, int pauses,
					   IdemPause what);
extern void lock_sleep(long msecs, IdemPause what);

#endif							/* IDEM_LOCK_H */
