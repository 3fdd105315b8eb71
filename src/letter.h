/*-------------------------------------------------------------------------
 *
 * letter.h
 *	  Dead letters.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LETTER_H
#define IDEM_LETTER_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "message.h"
#include "queue.h"

extern void letter_write(const Message *message, const Queue *queue,
						 TimestampTz died_at);
extern int64 letter_expire(int64 max_rows);

#endif							/* IDEM_LETTER_H */
