/*-------------------------------------------------------------------------
 *
 * ready.h
 *	  The search for messages that can be taken.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_READY_H
#define IDEM_READY_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "message.h"
#include "queue.h"

extern int	ready_take(const Queue *queue, int max_messages,
					   const Interval *lease, Message *taken,
					   TimestampTz *next_due);
extern bool ready_look(const Queue *queue, TimestampTz *next_due);
extern void ready_forget(const Queue *queue);

#endif							/* IDEM_READY_H */
