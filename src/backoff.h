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

typedef enum IdemJitter
{
	IDEM_JITTER_NONE,
	IDEM_JITTER_FULL,
	IDEM_JITTER_EQUAL,
	IDEM_JITTER_DECORRELATED
} IdemJitter;

extern int64 backoff_delay(int32 attempt, int64 base, int64 cap,
						   IdemJitter jitter);

#endif							/* IDEM_BACKOFF_H */
