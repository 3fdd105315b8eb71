/*-------------------------------------------------------------------------
 *
 * queue.h
 *	  A queue: whose it is, who may use it, and how it is configured.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_QUEUE_H
#define IDEM_QUEUE_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "fmgr.h"

#include "backoff.h"

/* Setting, see idempotency.c. */
extern int	queue_dead_letter_ttl;	/* seconds */

/* A queue, with the settings where it is not configured. */
typedef struct Queue
{
	Oid			owner;
	const text *name;
	int64		hash;			/* of the name, in the index of messages */
	bool		paused;
	int32		max_attempts;	/* 0: no limit */
	int64		backoff_base;	/* microseconds */
	int64		backoff_cap;
	IdemJitter	jitter;
	bool		has_dead_letter_ttl;	/* else the settings decide */
	Interval	dead_letter_ttl;
} Queue;

extern void queue_argument(Queue *queue, FunctionCallInfo fcinfo,
						   int queue_arg, int owner_arg);
extern const text *queue_name_argument(FunctionCallInfo fcinfo, int arg,
									   const char *what);
extern void queue_of_owner(Queue *queue, const text *name,
						   FunctionCallInfo fcinfo, int owner_arg);
extern void queue_use(Queue *queue, Oid owner, const text *name);
extern bool queue_is_named(const Queue *queue, const text *name);
extern void queue_check(Oid owner, const text *name);
extern bool queue_may_use(Oid owner, const text *name);
extern void queue_lock_group(const Queue *queue, const text *group);
extern TimestampTz queue_letter_expiry(const Queue *queue, TimestampTz from);
extern uint64 queue_group_hash(const Queue *queue, const text *group);
extern text *queue_scope(const Queue *queue);

#endif							/* IDEM_QUEUE_H */
