/*-------------------------------------------------------------------------
 *
 * janitor.h
 *	  Removal of what has expired.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_JANITOR_H
#define IDEM_JANITOR_H

#include "postgres.h"

#include "fmgr.h"

/* Settings, see idempotency.c. */
extern int	janitor_batch;		/* rows */
extern int	janitor_interval;	/* seconds; 0: off */
extern int	janitor_pause;		/* milliseconds */

extern void janitor_init(void);

#endif							/* IDEM_JANITOR_H */
