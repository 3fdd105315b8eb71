/*-------------------------------------------------------------------------
 *
 * finish.h
 *	  Settings of failures.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_FINISH_H
#define IDEM_FINISH_H

extern int	finish_max_attempts;	/* 0: no limit */
extern int	finish_backoff_base;	/* milliseconds */
extern int	finish_backoff_cap;		/* milliseconds */

#endif							/* IDEM_FINISH_H */
