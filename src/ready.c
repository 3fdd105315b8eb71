/*-------------------------------------------------------------------------
 *
 * ready.c
 *	  The search for messages that can be taken.
 *
 * A message is taken by a lease: a new version of its row, with a token.  Whoever
 * looks for messages goes along the index of what is due (priority, time, id), and
 * passes by
 *
 *	- what is gone, or is being changed by somebody: nobody waits for anybody;
 *	- what others hold by a lease that has not run out;
 *	- what is in a group and not its first message;
 *
 * and, under REPEATABLE READ and SERIALIZABLE, what the transaction does not see.
 *
 * Passing by costs time.  Usually VACUUM and the hints that index scans leave keep
 * the beginning of the index clear, but not while an old snapshot keeps VACUUM from
 * removing anything, and not while many messages are out on lease.  So a session
 * remembers, of each priority of a queue, from when on there was something to take
 * (the floor), and begins there.  That is a guess: a transaction that commits late
 * leaves a message below it, a lease runs out, a delivery is rolled back.  So now
 * and then it looks at everything, and how often depends on what that costs: if a
 * whole look has passed by many messages and took t, the next one comes no earlier
 * than READY_PATIENCE * t after it.  Thus the passing by costs a sixteenth of the
 * time at most, and a message is overlooked for no longer than sixteen times of what
 * it takes to look at all.  As long as whole looks are cheap, every look is one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "args.h"
#include "compat.h"
#include "history.h"
#include "lease.h"
#include "letter.h"
#include "lock.h"
#include "message.h"
#include "queue.h"
#include "ready.h"

/* A look that passes by no more is cheap. */
#define READY_CHEAP			100
#define READY_PATIENCE		16

/* Whoever has got something does not pass by more to get more. */
#define READY_FAR			1000

/* Floors of so many priorities are remembered, of so many queues. */
#define READY_MAX_FLOORS	8
#define READY_MAX_QUEUES	256

typedef struct ReadyFloor
{
	int16		priority;
	TimestampTz due_at;			/* what was due earlier was not to be had */
} ReadyFloor;

typedef struct ReadyName
{
	Oid			owner;
	char		name[IDEM_MAX_QUEUE_LEN + 1];
} ReadyName;

/* What a session remembers of a queue. */
typedef struct ReadyQueue
{
	ReadyName	name;			/* hash key: padded with zeros */
	int64		look_at;		/* when to look at everything, by lock_clock() */
	int			nfloors;
	ReadyFloor	floors[READY_MAX_FLOORS];
} ReadyQueue;

/* One look. */
typedef struct ReadyLook
{
	const Queue *queue;
	MessageScan *scan;
	bool		only;			/* nothing is taken */
	TimestampTz now;
	int64		token;
	TimestampTz lease_until;
} ReadyLook;

/* What there was at a place. */
typedef enum ReadyFind
{
	READY_TAKEN,
	READY_PASSED_BY,
	READY_BEHIND				/* others of its group */
} ReadyFind;

static HTAB *ready_queues = NULL;

static int	ready_walk(ReadyLook *look, int max_messages, Message *taken,
					   TimestampTz *next_due);
static ReadyQueue *ready_queue(Oid owner, const text *name);
static ReadyFloor *ready_floor(ReadyQueue *known, int16 priority);
static ReadyFind ready_try(const ReadyLook *look, Message *taken);
static ReadyFind ready_take_over(const ReadyLook *look, Message *taken,
								 bool exhausted);

/*
 * Take up to max_messages of a queue.  Returns how many; "taken" has them, as they
 * are now.  If there are fewer, *next_due is when the next one that is delayed will
 * be due, or DT_NOEND.
 */
int
ready_take(const Queue *queue, int max_messages, const Interval *lease,
		   Message *taken, TimestampTz *next_due)
{
	ReadyLook	look;

	look.queue = queue;
	look.only = false;
	look.now = GetCurrentTimestamp();
	look.token = lease_new_token();
	look.lease_until = args_add(look.now, lease);
	return ready_walk(&look, max_messages, taken, next_due);
}

/* Is there a message that could be taken? */
bool
ready_look(const Queue *queue, TimestampTz *next_due)
{
	ReadyLook	look;
	Message		none;

	memset(&look, 0, sizeof(look));
	look.queue = queue;
	look.only = true;
	look.now = GetCurrentTimestamp();
	return ready_walk(&look, 1, &none, next_due) > 0;
}

static int
ready_walk(ReadyLook *look, int max_messages, Message *taken,
		   TimestampTz *next_due)
{
	const Queue *queue = look->queue;
	ReadyQueue *known = ready_queue(queue->owner, queue->name);
	int64		begun = lock_clock();
	bool		everything = begun >= known->look_at;
	MessagePlace place;
	ReadyFloor *floor = NULL;
	bool		behind = false; /* has the floor come to stay? */
	bool		within = false; /* one priority, or all that follow? */
	int64		passed_by = 0;
	int			in_vain = 0;
	int			ntaken = 0;

	look->scan = message_begin_scan(queue->owner, queue->name);
	*next_due = DT_NOEND;
	if (everything)
		known->nfloors = 0;

	message_seek(look->scan, PG_INT16_MIN);
	while (ntaken < max_messages && (ntaken == 0 || in_vain < READY_FAR))
	{
		CHECK_FOR_INTERRUPTS();

		if (!message_next_place(look->scan, &place))
		{
			if (!within)
				break;
			within = false;
			message_seek(look->scan, floor->priority + 1);
			floor = NULL;
			continue;
		}

		if (floor == NULL || floor->priority != place.priority)
		{
			floor = ready_floor(known, place.priority);
			behind = false;
			if (floor->due_at > place.due_at)
			{
				within = true;
				message_seek_due(look->scan, place.priority, floor->due_at);
				continue;
			}
		}
		if (place.due_at > look->now)
		{
			*next_due = Min(*next_due, place.due_at);
			within = false;
			message_seek(look->scan, floor->priority + 1);
			floor = NULL;
			continue;
		}

		/* from here on, next time */
		if (!behind)
			floor->due_at = place.due_at;
		switch (ready_try(look, &taken[ntaken]))
		{
			case READY_TAKEN:
				ntaken++;
				in_vain = 0;
				break;
			case READY_BEHIND:
				/* whoever has its turn may be ready at any time */
				behind = behind || ntaken > 0;
				/* FALLTHROUGH */
			case READY_PASSED_BY:
				passed_by++;
				in_vain++;
				break;
		}
	}
	message_end_scan(look->scan);

	if (everything)
		known->look_at = passed_by <= READY_CHEAP ? 0 :
			lock_clock() + READY_PATIENCE * (lock_clock() - begun);
	return ntaken;
}

/* Look at everything next time. */
void
ready_forget(const Queue *queue)
{
	ready_queue(queue->owner, queue->name)->look_at = 0;
}

static ReadyQueue *
ready_queue(Oid owner, const text *name)
{
	ReadyName	key;
	ReadyQueue *known;
	bool		found;

	if (ready_queues != NULL &&
		hash_get_num_entries(ready_queues) >= READY_MAX_QUEUES)
	{
		hash_destroy(ready_queues);
		ready_queues = NULL;
	}
	if (ready_queues == NULL)
	{
		HASHCTL		control = {0};

		control.keysize = sizeof(ReadyName);
		control.entrysize = sizeof(ReadyQueue);
		control.hcxt = TopMemoryContext;
		ready_queues = hash_create("idempotency queues looked at", 16, &control,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}

	memset(&key, 0, sizeof(key));
	key.owner = owner;
	memcpy(key.name, VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	known = hash_search(ready_queues, &key, HASH_ENTER, &found);
	if (!found)
	{
		known->look_at = 0;
		known->nfloors = 0;
	}
	return known;
}

/* The floor of a priority; without one, its beginning. */
static ReadyFloor *
ready_floor(ReadyQueue *known, int16 priority)
{
	ReadyFloor *floor;

	for (int i = 0; i < known->nfloors; i++)
		if (known->floors[i].priority == priority)
			return &known->floors[i];

	/* the last one is shared by all that are too many, and begins anew */
	if (known->nfloors < READY_MAX_FLOORS)
		known->nfloors++;
	floor = &known->floors[known->nfloors - 1];
	floor->priority = priority;
	floor->due_at = DT_NOBEGIN;
	return floor;
}

/* Take what is at the place that the scan has come to, if it can be taken. */
static ReadyFind
ready_try(const ReadyLook *look, Message *taken)
{
	const MessageState *found = message_at(look->scan);
	MessageState state;
	const text *group;
	int32		max_attempts;
	bool		exhausted;

	if (found == NULL || found->lease_until > look->now)
		return READY_PASSED_BY;

	state = *found;
	group = message_group(look->scan);
	if (group != NULL && !message_is_first(look->scan, group, state.place))
		return READY_BEHIND;

	if (look->only)
		return READY_TAKEN;

	max_attempts = state.max_attempts == MESSAGE_QUEUE_DECIDES ?
		look->queue->max_attempts : state.max_attempts;
	exhausted = max_attempts > 0 && state.attempt >= max_attempts;
	if (exhausted || !TIMESTAMP_IS_NOBEGIN(state.lease_until))
		return ready_take_over(look, taken, exhausted);

	state.attempt++;
	state.token = look->token;
	state.lease_until = look->lease_until;
	if (!message_try_lease(look->scan, &state))
		return READY_PASSED_BY;
	message_read(look->scan, taken);
	taken->state = state;
	return READY_TAKEN;
}

/*
 * The same for a message whose lease has run out: whoever had it has not answered.
 * If that was its last attempt, it is a dead letter now.
 */
static ReadyFind
ready_take_over(const ReadyLook *look, Message *taken, bool exhausted)
{
	const bool	wait = false;
	MessageState *state = &taken->state;

	message_read(look->scan, taken);
	if (!TIMESTAMP_IS_NOBEGIN(state->lease_until))
		taken->history = history_ran_out(taken->history, state->attempt,
										 state->lease_until);
	if (exhausted)
	{
		if (message_delete(taken, wait))
			letter_write(taken, look->queue, look->now);
		return READY_PASSED_BY;
	}

	state->attempt++;
	state->token = look->token;
	state->lease_until = look->lease_until;
	return message_replace(taken, wait) ? READY_TAKEN : READY_PASSED_BY;
}
