/*-------------------------------------------------------------------------
 *
 * counter.h
 *	  Counting what happens.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_COUNTER_H
#define IDEM_COUNTER_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "port/atomics.h"

/* In the order of the columns of idem_stats. */
typedef enum Counter
{
	COUNTER_CLAIMED,			/* what claims were answered */
	COUNTER_REPLAYED,
	COUNTER_IN_PROGRESS,
	COUNTER_MISMATCH,
	COUNTER_RETRY_LATER,
	COUNTER_FAILED,
	COUNTER_HELD,
	COUNTER_WAITS,				/* for others, in claims */
	COUNTER_WAIT_USECS,
	COUNTER_TAKEN_OVER,			/* leases of keys that ran out */
	COUNTER_STALE,				/* holders of old tokens refused: ID003 */
	COUNTER_FINISHES,
	COUNTER_FAILURES,
	COUNTER_EXPIRED,			/* rows removed */
	COUNTER_ENQUEUED,
	COUNTER_DUPLICATES,			/* not enqueued: the key had come before */
	COUNTER_DEQUEUED,
	COUNTER_ACKED,
	COUNTER_NACKED,
	COUNTER_DEAD,
	COUNTER_REDRIVEN,
	COUNTERS
} Counter;

/* Of this backend; NULL until the first count, or if they are not kept. */
extern pg_atomic_uint64 *counter_own;
extern bool counter_kept;

extern void counter_init(void);
extern void counter_begin(void);
extern bool counter_read(uint64 *counts, TimestampTz *since);
extern bool counter_reset(void);

/*
 * Count.  Nobody else writes to the counters of a backend, so there is no need for an
 * atomic addition.
 */
static inline void
counter_add(Counter counter, uint64 n)
{
	if (unlikely(counter_own == NULL))
	{
		if (!counter_kept)
			return;
		counter_begin();
		if (counter_own == NULL)
			return;
	}
	pg_atomic_write_u64(&counter_own[counter],
						pg_atomic_read_u64(&counter_own[counter]) + n);
}

#endif							/* IDEM_COUNTER_H */
