/*-------------------------------------------------------------------------
 *
 * wake.h
 *	  Waking those who wait for messages.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_WAKE_H
#define IDEM_WAKE_H

#include "postgres.h"

#include "queue.h"

extern void wake_init(void);
extern void wake_at_commit(const Queue *queue);
extern void wake_me_for(const Queue *queue);
extern void wake_me_no_more(void);

#endif							/* IDEM_WAKE_H */
