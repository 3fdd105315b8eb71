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
 * Passing by costs time, even by places that VACUUM has not cleared yet.  So a session
 * remembers, of each priority of a queue, from when on there was something to take
 * (the floor), and may begin there.  That is a guess: a transaction that commits late
 * leaves a message below it, a lease runs out, a delivery is rolled back, a priority is
 * new.  So now and then it looks at everything, and how often depends on what that
 * costs.  If a whole look has met much in vain and took the time t, the next one comes
 * no earlier than READY_PATIENCE * t after it.  Thus looking in vain takes a sixteenth
 * of the time at most, and a message is overlooked for no longer than sixteen times of
 * what it takes to look at all.  As long as whole looks are cheap, every look is one.
 *
 * This is what keeps the pace while an old snapshot keeps VACUUM from removing
 * anything, and while many messages are out on lease.
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

/*
 * A look is cheap that passes by no more places, and pages of the index, in all.  Not a
 * matter of time, which would depend on what else the machine does.
 */
#define READY_CHEAP			16
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
	char		name[ARGS_MAX_NAME_LEN + 1];
} ReadyName;

/* What a session remembers of a queue. */
typedef struct ReadyQueue
{
	ReadyName	name;			/* hash key: padded with zeros */
	int64		look_at;		/* when to look at everything, by lock_clock() */
	int			nfloors;		/* READY_MAX_FLOORS + 1: too many priorities */
	ReadyFloor	floors[READY_MAX_FLOORS + 1];	/* in the order of priorities */
} ReadyQueue;

/* One look. */
typedef struct ReadyLook
{
	const Queue *queue;
	bool		only;			/* nothing is taken */
	TimestampTz now;
	int64		token;
	TimestampTz lease_until;
	MessageScan *scan;
	Message    *taken;
	int			ntaken;
	int			max_messages;
	int			in_vain;		/* passed by since the last one was taken */
	int64		passed_by;		/* in all */
	TimestampTz next_due;		/* of those that are not due yet */
} ReadyLook;

/* What there was at a place. */
typedef enum ReadyFind
{
	READY_TAKEN,
	READY_PASSED_BY,
	READY_BEHIND				/* others of its group */
} ReadyFind;

static HTAB *ready_queues = NULL;

static void ready_take_or_look(ReadyLook *look);
static void ready_walk(ReadyLook *look, ReadyFloor *floor, ReadyQueue *known);
static bool ready_goes_on(const ReadyLook *look);
static ReadyFloor *ready_new_floor(ReadyQueue *known, int16 priority);
static ReadyQueue *ready_queue(const Queue *queue);
static ReadyFind ready_try(ReadyLook *look);
static ReadyFind ready_take_over(ReadyLook *look, bool exhausted);

/*
 * Take up to max_messages of a queue.  Returns how many; "taken" has them, as they
 * are now.  If there are fewer, *next_due is when the next one that is delayed will
 * be due, or DT_NOEND.
 */
int
ready_take(const Queue *queue, int max_messages, const Interval *lease,
		   Message *taken, TimestampTz *next_due)
{
	ReadyLook	look = {.queue = queue};

	look.now = GetCurrentTimestamp();
	look.token = lease_new_token();
	look.lease_until = args_add(look.now, lease);
	look.taken = taken;
	look.max_messages = max_messages;
	ready_take_or_look(&look);

	/*
	 * While we were looking others have taken what was due when we began;
	 * something else may have become so.
	 */
	if (look.ntaken == 0 && look.passed_by > READY_CHEAP)
	{
		look.now = GetCurrentTimestamp();
		look.lease_until = args_add(look.now, lease);
		ready_take_or_look(&look);
	}
	*next_due = look.next_due;
	return look.ntaken;
}

/* Is there a message that could be taken? */
bool
ready_look(const Queue *queue, TimestampTz *next_due)
{
	ReadyLook	look = {.queue = queue};
	Message		none;

	look.only = true;
	look.now = GetCurrentTimestamp();
	look.taken = &none;
	look.max_messages = 1;
	ready_take_or_look(&look);
	*next_due = look.next_due;
	return look.ntaken > 0;
}

static void
ready_take_or_look(ReadyLook *look)
{
	ReadyQueue *known = ready_queue(look->queue);
	int64		begun = lock_clock();
	bool		everything;
	int64		met;

	everything = begun >= known->look_at || known->nfloors > READY_MAX_FLOORS;

	look->scan = message_begin_scan(look->queue);
	look->next_due = DT_NOEND;
	if (everything)
	{
		known->nfloors = 0;
		message_seek(look->scan, PG_INT16_MIN);
		ready_walk(look, NULL, known);
	}
	for (int i = 0; !everything && i < known->nfloors && ready_goes_on(look); i++)
	{
		ReadyFloor *floor = &known->floors[i];

		message_seek_due(look->scan, floor->priority, floor->due_at);
		ready_walk(look, floor, known);
	}
	met = look->passed_by + message_pages(look->scan);
	message_end_scan(look->scan);

	if (everything)
		known->look_at = met <= READY_CHEAP ? 0 :
			lock_clock() + READY_PATIENCE * (lock_clock() - begun);
}

/* Whoever has got something does not go on for ever to get more. */
static bool
ready_goes_on(const ReadyLook *look)
{
	return look->ntaken < look->max_messages &&
		(look->ntaken == 0 || look->in_vain < READY_FAR);
}

/*
 * From where the scan is: along one priority, whose floor is given, or along all that
 * follow, each of which gets a floor.
 */
static void
ready_walk(ReadyLook *look, ReadyFloor *floor, ReadyQueue *known)
{
	const bool	one_priority = floor != NULL;
	bool		behind = false; /* has the floor come to stay? */
	MessagePlace place;

	while (ready_goes_on(look) && message_next_place(look->scan, &place))
	{
		CHECK_FOR_INTERRUPTS();

		if (floor == NULL || floor->priority != place.priority)
		{
			floor = ready_new_floor(known, place.priority);
			behind = false;
		}
		if (place.due_at > look->now)
		{
			look->next_due = Min(look->next_due, place.due_at);
			if (one_priority)
				break;
			message_seek(look->scan, place.priority + 1);
			continue;
		}

		/* from here on, next time */
		if (!behind)
			floor->due_at = place.due_at;
		switch (ready_try(look))
		{
			case READY_TAKEN:
				look->ntaken++;
				look->in_vain = 0;
				break;
			case READY_BEHIND:
				/* whoever has its turn may be ready at any time */
				behind = behind || look->ntaken > 0;
				/* FALLTHROUGH */
			case READY_PASSED_BY:
				look->passed_by++;
				look->in_vain++;
				break;
		}
	}
}

/* They come in their order; the last one is shared by all that are too many. */
static ReadyFloor *
ready_new_floor(ReadyQueue *known, int16 priority)
{
	ReadyFloor *floor;

	if (known->nfloors <= READY_MAX_FLOORS)
		known->nfloors++;
	floor = &known->floors[known->nfloors - 1];
	floor->priority = priority;
	floor->due_at = DT_NOBEGIN;
	return floor;
}

/* Look at everything next time. */
void
ready_forget(const Queue *queue)
{
	ready_queue(queue)->look_at = 0;
}

static ReadyQueue *
ready_queue(const Queue *queue)
{
	const text *name = queue->name;
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
	key.owner = queue->owner;
	memcpy(key.name, VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	known = hash_search(ready_queues, &key, HASH_ENTER, &found);
	if (!found)
	{
		known->look_at = 0;
		known->nfloors = 0;
	}
	return known;
}

/* Take what is at the place that the scan has come to, if it can be taken. */
static ReadyFind
ready_try(ReadyLook *look)
{
	Message    *taken = &look->taken[look->ntaken];
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
		return ready_take_over(look, exhausted);

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
ready_take_over(ReadyLook *look, bool exhausted)
{
	const bool	wait = false;
	Message    *taken = &look->taken[look->ntaken];
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
