/*-------------------------------------------------------------------------
 *
 * message.h
 *	  The table of messages, idem_message.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_MESSAGE_H
#define IDEM_MESSAGE_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/jsonb.h"

#include "compat.h"
#include "queue.h"
#include "store.h"

/* Instead of a number of attempts: as the queue has it. */
#define MESSAGE_QUEUE_DECIDES	(-1)

/*
 * The columns that are never null and of fixed width, in the form that they have
 * in the table.
 */
typedef struct MessageState
{
	int64		id;
	int64		place;			/* in its group */
	int64		queue_hash;
	TimestampTz enqueued_at;
	TimestampTz due_at;
	TimestampTz lease_until;	/* DT_NOBEGIN if nobody has the message */
	int64		token;			/* 0 if nobody has it */
	int32		attempt;
	Oid			owner;
	int32		max_attempts;	/* 0: no limit, or MESSAGE_QUEUE_DECIDES */
	int16		priority;
} MessageState;

typedef struct Message
{
	StoreVersion version;		/* set by reading, ignored by inserting */
	HeapTuple	tuple;			/* likewise */
	MessageState state;
	text	   *queue;
	text	   *group;			/* NULL for none, as all that follow */
	text	   *key;
	Jsonb	   *headers;
	Jsonb	   *payload;		/* never NULL */
	Jsonb	   *history;
} Message;

/* Where a message stands in its queue: the index is ordered so. */
typedef struct MessagePlace
{
	int16		priority;
	TimestampTz due_at;
} MessagePlace;

/* A walk along a queue; opaque to others. */
typedef struct MessageScan MessageScan;

extern int64 message_new_id(void);
extern void message_insert(Message *messages, int n);
extern bool message_find(int64 id, Message *message);
extern bool message_replace(const Message *message, bool wait);
extern bool message_replace_state(const Message *message, bool wait);
extern bool message_delete(const Message *message, bool wait);

extern MessageScan *message_begin_scan(const Queue *queue);
extern void message_end_scan(MessageScan *scan);
extern void message_seek(MessageScan *scan, int32 priority);
extern void message_seek_due(MessageScan *scan, int16 priority,
							 TimestampTz due_at);
extern bool message_next_place(MessageScan *scan, MessagePlace *place);
extern int64 message_pages(const MessageScan *scan);
extern const MessageState *message_at(MessageScan *scan);
extern const text *message_group(MessageScan *scan);
extern void message_read(MessageScan *scan, Message *message);
extern bool message_try_lease(MessageScan *scan, const MessageState *state);
extern bool message_try_delete_at(MessageScan *scan);
extern bool message_is_first(MessageScan *scan, const text *group,
							 int64 place);

#endif							/* IDEM_MESSAGE_H */
