/*-------------------------------------------------------------------------
 *
 * backoff.h
 *	  How long to wait before the next attempt.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BACKOFF_H
#define IDEM_BACKOFF_H

#include "postgres.h"

#include "datatype/timestamp.h"

typedef enum IdemJitter
{
	IDEM_JITTER_NONE,
	IDEM_JITTER_FULL,
	IDEM_JITTER_EQUAL,
	IDEM_JITTER_DECORRELATED
} IdemJitter;

/* Settings, see idempotency.c. */
extern int	backoff_max_attempts;	/* 0: no limit */
extern int	backoff_base;		/* milliseconds */
extern int	backoff_cap;		/* milliseconds */

extern int64 backoff_setting_base(void);
extern int64 backoff_setting_cap(void);
extern int64 backoff_usecs(const char *what, const Interval *given);
extern IdemJitter backoff_jitter(const char *name);
extern int64 backoff_delay(int32 attempt, int64 base, int64 cap,
						   IdemJitter jitter);

#endif							/* IDEM_BACKOFF_H */
