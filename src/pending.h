/*-------------------------------------------------------------------------
 *
 * pending.h
 *	  What this transaction has claimed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_PENDING_H
#define IDEM_PENDING_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "compat.h"
#include "key.h"
#include "record.h"

typedef enum PendingState
{
	PENDING_CLAIMED,			/* must be finished or released before COMMIT */
	PENDING_FINISHED,			/* or failed: the record is written */
	PENDING_RELEASED			/* given up; the lock is kept */
} PendingState;

/* What idem_claim leaves for idem_finish. */
typedef struct PendingWork
{
	TimestampTz claimed_at;
	int			attempt;
	int64		generation;		/* 0: no steps in this life of the key */
	bool		has_ttl;		/* else the settings decide */
	Interval	ttl;
	IdemFingerprint fingerprint;
	IdemVersion row;			/* the row under the claim, if there is one */
	bool		row_is_ours;	/* written ahead; else it was there before */
} PendingWork;

typedef struct PendingVersion PendingVersion;

typedef struct PendingClaim
{
	IdemKey		key;			/* with strings of its own */
	bool		locked;			/* held by the lock of the key */
	bool		lost;			/* somebody else wrote the record: 40001 */
	PendingVersion *top;		/* the present; never NULL */
} PendingClaim;

/* One state of a claim, valid from one nesting level on: see pending.c. */
struct PendingVersion
{
	int			level;
	PendingState state;
	PendingWork work;
	PendingClaim *claim;
	PendingVersion *prev;		/* what a rollback of "level" returns to */
	PendingVersion *next_in_level;
};

extern void pending_init(void);
extern PendingClaim *pending_find(const IdemKey *key);
extern PendingClaim *pending_unfinished(const IdemKey *key);
extern bool pending_may_lock(const IdemKey *key);
extern PendingClaim *pending_remember(const IdemKey *key,
									  const PendingWork *work, bool locked);
extern void pending_write_ahead(PendingClaim *claim, const IdemVersion *row);
extern void pending_change(PendingClaim *claim, PendingState state);
extern void pending_begin_steps(PendingClaim *claim, int64 generation);
pg_noreturn extern void pending_raise_lost(const PendingClaim *claim);

extern void pending_visit(void (*visit) (const PendingClaim *claim, void *arg),
						  void *arg);

#endif							/* IDEM_PENDING_H */
