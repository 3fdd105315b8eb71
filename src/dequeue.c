/*-------------------------------------------------------------------------
 *
 * dequeue.c
 *	  Messages go out: idem_dequeue, idem_ack, idem_nack, idem_extend, and their
 *	  forms for many.
 *
 * A delivery is a lease on the row of the message, with a token, like a lease on a
 * key (lease.c): whoever presents the token of the latest delivery may end it, be it
 * that the lease has run out, as long as nobody else took the message.
 *
 *		  idem_enqueue
 *			   |
 *			   v		  idem_dequeue
 *		   waiting  ------------------->  out on lease  ---> gone (idem_ack)
 *			 ^  ^							|	   |
 *			 |	+---- idem_nack ------------+	   | (the lease runs out)
 *			 |									   v
 *			 |	idem_redrive				taken by the next one who looks,
 *			 +----------------- dead letter <--- with a new token, or dead
 *								(no attempts left, or idem_nack, final)
 *
 * None of the functions that take a token raises 40001 because of the isolation
 * level: the token is the check.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "answer.h"
#include "args.h"
#include "backoff.h"
#include "compat.h"
#include "counter.h"
#include "errors.h"
#include "history.h"
#include "key.h"
#include "letter.h"
#include "lock.h"
#include "message.h"
#include "queue.h"
#include "ready.h"
#include "record.h"
#include "wake.h"

/* Limits of one call. */
#define DEQUEUE_MAX_MESSAGES	10000
#define DEQUEUE_MAX_WAIT		(30 * USECS_PER_SEC)

/* A pause in waiting is no longer than that (see lock_pause), which is for ever. */
#define DEQUEUE_FAR				USECS_PER_MINUTE

/* What shall become of messages that have failed. */
typedef struct DequeueFailure
{
	Jsonb	   *error;			/* NULL for none */
	bool		final;
	bool		has_retry_in;	/* else the backoff of the queue */
	Interval	retry_in;
} DequeueFailure;

/* Messages that a call is about, in the order of their ids. */
typedef struct DequeueDelivery
{
	int64		id;
	int64		token;
	int			position;
} DequeueDelivery;

PG_FUNCTION_INFO_V1(idem_dequeue);
PG_FUNCTION_INFO_V1(idem_await);
PG_FUNCTION_INFO_V1(idem_ack);
PG_FUNCTION_INFO_V1(idem_ack_many);
PG_FUNCTION_INFO_V1(idem_nack);
PG_FUNCTION_INFO_V1(idem_nack_many);
PG_FUNCTION_INFO_V1(idem_extend);
PG_FUNCTION_INFO_V1(idem_extend_many);

static int	dequeue_patiently(Queue *queue, int max_messages,
							  const Interval *lease, Message *taken,
							  IdemWait *wait);
static void dequeue_renew(Queue *queue);
static void dequeue_wait(IdemWait *wait, FunctionCallInfo fcinfo, int arg);
static bool dequeue_pause(const IdemWait *wait, TimestampTz next_due,
						  int pauses);
static void dequeue_put(ReturnSetInfo *rsinfo, const Queue *queue,
						const Message *message);
static void dequeue_downstream_key(pg_uuid_t *result, const Queue *queue,
								   const Message *message);
static void dequeue_one(DequeueDelivery *delivery, FunctionCallInfo fcinfo);
static DequeueDelivery *dequeue_many(FunctionCallInfo fcinfo, int *n);
static void dequeue_find(const DequeueDelivery *delivery, Message *message);
static void dequeue_ack(const DequeueDelivery *delivery);
static void dequeue_gone(const Message *message);
static void dequeue_failure(DequeueFailure *failure, FunctionCallInfo fcinfo);
static TimestampTz dequeue_nack(const DequeueDelivery *delivery,
								const DequeueFailure *failure);
static TimestampTz dequeue_extend(const DequeueDelivery *delivery,
								  const Interval *lease);
static int	dequeue_compare(const void *a, const void *b);

/* ----------------------------------------------------------------
 *						Taking
 * ----------------------------------------------------------------
 */

/*
 * idem_dequeue(queue text, max_messages int, lease interval, wait interval,
 *				owner text) -> setof idem_dequeue_answer
 *
 * Takes up to max_messages that are due, in the order of priority and time.  Once
 * that is committed nobody else gets them until the lease runs out, or they are
 * given back.
 *
 *	queue, owner	as for idem_enqueue
 *	max_messages	1 to 10000
 *	lease			at least 1 ms
 *	wait			how long to wait for the first one, up to 30 s; NULL: not at all
 *
 * Waits for no other consumer: what somebody has locked is passed by.  Messages that
 * are found to have used up their attempts become dead letters.  Takes a transaction
 * ID if it finds something.
 *
 * Waiting is a pause that grows to a quarter of a second, and another look; where
 * there is shared memory it ends as soon as somebody commits a message.  The statement
 * that called has a snapshot all the while: see idem_await.  Under REPEATABLE READ and
 * SERIALIZABLE, where nothing new could be seen, it does not wait.
 *
 * Raises 22004, 22023, 22008, 54000 (bad arguments), 42501 (not shared), 42704 (no
 * such role), 25006.
 */
Datum
idem_dequeue(PG_FUNCTION_ARGS)
{
	static const Oid columns[] = {
		INT8OID, TEXTOID, JSONBOID, JSONBOID, INT4OID, INT8OID, TIMESTAMPTZOID,
		TIMESTAMPTZOID, TEXTOID, UUIDOID
	};
	ReturnSetInfo *rsinfo;
	Queue		queue;
	Interval	lease;
	IdemWait	wait;
	Message    *taken;
	TimestampTz next_due = DT_NOEND;
	int			max_messages;
	volatile int n;

	args_may_write("idem_dequeue()");
	record_open(true);
	rsinfo = answer_rows(fcinfo, columns, lengthof(columns));
	queue_argument(&queue, fcinfo, 0, 4);
	if (PG_ARGISNULL(1) || PG_GETARG_INT32(1) < 1 ||
		PG_GETARG_INT32(1) > DEQUEUE_MAX_MESSAGES)
		ereport(ERROR,
				(errcode(PG_ARGISNULL(1) ? ERRCODE_NULL_VALUE_NOT_ALLOWED :
						 ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_messages must be a number from 1 to %d",
						DEQUEUE_MAX_MESSAGES),
				 errhint("Take no more than you can handle within the lease.")));
	max_messages = PG_GETARG_INT32(1);
	args_lease(&lease, fcinfo, 2);
	dequeue_wait(&wait, fcinfo, 3);

	taken = palloc(max_messages * sizeof(Message));
	n = queue.paused ? 0 :
		ready_take(&queue, max_messages, &lease, taken, &next_due);
	if (n == 0 && wait.mode != IDEM_WAIT_NONE && !IsolationUsesXactSnapshot())
	{
		PG_TRY();
		{
			n = dequeue_patiently(&queue, max_messages, &lease, taken, &wait);
		}
		PG_CATCH();
		{
			wake_me_no_more();
			PG_RE_THROW();
		}
		PG_END_TRY();
		wake_me_no_more();
	}

	counter_add(COUNTER_DEQUEUED, n);
	for (int i = 0; i < n; i++)
		dequeue_put(rsinfo, &queue, &taken[i]);
	return (Datum) 0;
}

/* Look, and wait, until there is something to take, or the wait is over. */
static int
dequeue_patiently(Queue *queue, int max_messages, const Interval *lease,
				  Message *taken, IdemWait *wait)
{
	int			n = 0;

	for (int pauses = 0; n == 0; pauses++)
	{
		TimestampTz next_due = DT_NOEND;

		wake_me_for(queue);
		dequeue_renew(queue);
		if (!queue->paused)
			n = ready_take(queue, max_messages, lease, taken, &next_due);
		if (n == 0 && !dequeue_pause(wait, next_due, pauses))
			break;
	}
	return n;
}

/*
 * idem_await(queue text, wait interval, owner text), a procedure
 *
 * Waits until the queue has a message that can be taken, and returns then; or after
 * "wait", up to 30 s.  Somebody else may take it before the caller does.
 *
 * Between the looks it has neither a snapshot nor a transaction, and so keeps no
 * VACUUM from anything.  For that reason it can be called outside of a transaction
 * block only: 25001.  Raises the rest as idem_dequeue.
 */
Datum
idem_await(PG_FUNCTION_ARGS)
{
	CallContext *call = (CallContext *) fcinfo->context;
	Queue		queue;
	IdemWait	wait;

	if (call == NULL || !IsA(call, CallContext) || call->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("cannot wait without a snapshot inside a transaction block"),
				 errhint("Call idem_await by itself, or use idem_dequeue with wait.")));
	args_may_write("idem_await()");
	record_open(true);
	queue_argument(&queue, fcinfo, 0, 2);
	dequeue_wait(&wait, fcinfo, 1);

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	PG_TRY();
	{
		for (int pauses = 0;; pauses++)
		{
			TimestampTz next_due = DT_NOEND;

			wake_me_for(&queue);
			if (!queue.paused && ready_look(&queue, &next_due))
				break;
			SPI_commit();
			if (!dequeue_pause(&wait, next_due, pauses))
				break;
			record_open(true);
			dequeue_renew(&queue);
		}
	}
	PG_CATCH();
	{
		wake_me_no_more();
		PG_RE_THROW();
	}
	PG_END_TRY();
	wake_me_no_more();
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * While a consumer waits his queue may be configured anew, or not shared with him any
 * more.  All locks are held already, so nothing else takes notice.
 */
static void
dequeue_renew(Queue *queue)
{
	AcceptInvalidationMessages();
	queue_check(queue->owner, queue->name);
	queue_use(queue, queue->owner, queue->name);
}

/* NULL is not to wait at all. */
static void
dequeue_wait(IdemWait *wait, FunctionCallInfo fcinfo, int arg)
{
	Interval	span;
	TimestampTz now = GetCurrentTimestamp();
	int64		usecs = 0;

	if (args_delay(&span, fcinfo, arg, "wait",
				   "Use null not to wait at all."))
		usecs = args_add(now, &span) - now;
	if (usecs > DEQUEUE_MAX_WAIT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("wait must not be longer than 30 seconds"),
				 errhint("Call again when nothing has come.")));
	lock_wait_at_most(wait, usecs);
}

/* Pause before looking again; false if the time is up. */
static bool
dequeue_pause(const IdemWait *wait, TimestampTz next_due, int pauses)
{
	TimestampTz far = GetCurrentTimestamp() + DEQUEUE_FAR;

	return lock_pause(wait, Min(next_due, far), pauses, IDEM_PAUSE_QUEUE);
}

static void
dequeue_put(ReturnSetInfo *rsinfo, const Queue *queue, const Message *message)
{
	const MessageState *state = &message->state;
	pg_uuid_t	downstream_key;
	Datum		values[10];
	bool		isnull[10] = {false};

	dequeue_downstream_key(&downstream_key, queue, message);
	values[0] = Int64GetDatum(state->id);
	isnull[1] = message->key == NULL;
	values[1] = PointerGetDatum(message->key);
	values[2] = JsonbPGetDatum(message->payload);
	isnull[3] = message->headers == NULL;
	values[3] = JsonbPGetDatum(message->headers);
	values[4] = Int32GetDatum(state->attempt);
	values[5] = Int64GetDatum(state->token);
	values[6] = TimestampTzGetDatum(state->enqueued_at);
	values[7] = TimestampTzGetDatum(state->lease_until);
	isnull[8] = message->group == NULL;
	values[8] = PointerGetDatum(message->group);
	values[9] = UUIDPGetDatum(&downstream_key);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
}

/*
 * What the system that gets the message may know it by, in every attempt, and after a
 * redrive: idem_derive() of its key, or, without one, of its id and the time of its
 * enqueue, for the id alone comes again in a database that was restored.
 */
static void
dequeue_downstream_key(pg_uuid_t *result, const Queue *queue,
					   const Message *message)
{
	text	   *key = message->key;

	if (key == NULL)
		key = cstring_to_text(psprintf(INT64_FORMAT "@" INT64_FORMAT,
									   message->state.id,
									   message->state.enqueued_at));
	key_derive(result, key,
			   cstring_to_text(message->key == NULL ? "message id" : "message"),
			   queue_scope(queue), NULL);
}

/* ----------------------------------------------------------------
 *						Which messages
 * ----------------------------------------------------------------
 */

/* From the first two arguments. */
static void
dequeue_one(DequeueDelivery *delivery, FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", PG_ARGISNULL(0) ? "id" : "token"),
				 errhint("Pass the id and the token that idem_dequeue returned for the message.")));
	delivery->id = PG_GETARG_INT64(0);
	delivery->token = args_token(false, PG_GETARG_DATUM(1));
	delivery->position = 0;
}

/* The same as arrays; in one order for all, so that those who overlap do not deadlock. */
static DequeueDelivery *
dequeue_many(FunctionCallInfo fcinfo, int *n)
{
	Datum		none = PointerGetDatum(construct_empty_array(INT8OID));
	ArgsArray	ids;
	ArgsArray	tokens;
	DequeueDelivery *deliveries;

	/* array_agg() of no rows is null */
	args_array(&ids, PG_ARGISNULL(0) ? none : PG_GETARG_DATUM(0),
			   "ids", INT8OID);
	args_array(&tokens, PG_ARGISNULL(1) ? none : PG_GETARG_DATUM(1),
			   "tokens", INT8OID);
	if (ids.n != tokens.n)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("%s must have an element for each id", "tokens"),
				 errdetail("The number of ids is %d, that of elements %d.",
						   ids.n, tokens.n),
				 errhint("Pass the ids and the tokens that idem_dequeue returned for the messages.")));
	deliveries = MemoryContextAllocHuge(CurrentMemoryContext,
										ids.n * sizeof(DequeueDelivery));
	for (int i = 0; i < ids.n; i++)
	{
		if (ids.isnull[i] || tokens.isnull[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not contain nulls",
							ids.isnull[i] ? "ids" : "tokens"),
					 errhint("Pass the ids and the tokens that idem_dequeue returned for the messages.")));
		deliveries[i].id = DatumGetInt64(ids.values[i]);
		deliveries[i].token = args_token(false, tokens.values[i]);
		deliveries[i].position = i;
	}
	qsort(deliveries, ids.n, sizeof(DequeueDelivery), dequeue_compare);
	*n = ids.n;
	return deliveries;
}

static int
dequeue_compare(const void *a, const void *b)
{
	const DequeueDelivery *left = a;
	const DequeueDelivery *right = b;

	return left->id < right->id ? -1 : left->id > right->id;
}

/*
 * The message that was delivered so.  Raises ID003 if it was not, or not to the
 * caller, or if somebody has taken it over since.
 */
static void
dequeue_find(const DequeueDelivery *delivery, Message *message)
{
	bool		may_know = false;

	if (message_find(delivery->id, message))
		may_know = queue_may_use(message->state.owner, message->queue);
	if (may_know && message->state.token == delivery->token)
		return;
	counter_add(COUNTER_STALE, 1);
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_STALE),
			 errmsg("message " INT64_FORMAT " is not the caller's any more",
					delivery->id),
			 may_know ?
			 errdetail("It has another token: the lease ran out and somebody took it over, or it was given back.") :
			 errdetail("It is not in a queue of the caller: it was acknowledged or purged, or is a dead letter."),
			 errhint("Undo the work if you can; do not repeat it under this token.")));
}

/* ----------------------------------------------------------------
 *						Done
 * ----------------------------------------------------------------
 */

/*
 * idem_ack(id bigint, token bigint) -> void
 *
 * Removes a message that was taken: it is done.  In the transaction of its effect
 * both happen, once, or none; else the effect is at-least-once.  Takes a transaction
 * ID.  Waits for a transaction that is taking the message over.
 *
 * Raises ID003 (taken over, given back, removed), 22004, 25006.
 */
Datum
idem_ack(PG_FUNCTION_ARGS)
{
	DequeueDelivery delivery;

	args_may_write("idem_ack()");
	record_open(true);
	dequeue_one(&delivery, fcinfo);
	dequeue_ack(&delivery);
	PG_RETURN_VOID();
}

/*
 * idem_ack_many(ids bigint[], tokens bigint[]) -> void
 *
 * idem_ack for each, all or none.  Raises 2202E, too, for arrays of different lengths
 * or of several dimensions.
 */
Datum
idem_ack_many(PG_FUNCTION_ARGS)
{
	DequeueDelivery *deliveries;
	int			n;

	args_may_write("idem_ack_many()");
	record_open(true);
	deliveries = dequeue_many(fcinfo, &n);
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		dequeue_ack(&deliveries[i]);
	}
	PG_RETURN_VOID();
}

static void
dequeue_ack(const DequeueDelivery *delivery)
{
	const bool	wait = true;
	Message		message;

	do
		dequeue_find(delivery, &message);
	while (!message_delete(&message, wait));

	CommandCounterIncrement();
	dequeue_gone(&message);
	counter_add(COUNTER_ACKED, 1);
}

/* In its group the next one has its turn. */
static void
dequeue_gone(const Message *message)
{
	Queue		queue;

	if (message->group == NULL)
		return;
	queue_use(&queue, message->state.owner, message->queue);
	ready_forget(&queue);
	wake_at_commit(&queue);
}

/* ----------------------------------------------------------------
 *						Failed
 * ----------------------------------------------------------------
 */

/*
 * idem_nack(id bigint, token bigint, error jsonb, retry_in interval,
 *			 final boolean) -> timestamptz
 *
 * Gives a message back that was taken: it has failed.  Returns when it will be due
 * again, or NULL if it is a dead letter now, since that was its last attempt.
 *
 *	error		kept in its history, up to idempotency.max_response_size
 *	retry_in	NULL: the backoff of the queue for this attempt
 *	final		no retry will help
 *
 * Raises as idem_ack, and 22023, 22008, 54000 for bad arguments.
 */
Datum
idem_nack(PG_FUNCTION_ARGS)
{
	DequeueDelivery delivery;
	DequeueFailure failure;
	TimestampTz retry_at;

	args_may_write("idem_nack()");
	record_open(true);
	dequeue_one(&delivery, fcinfo);
	dequeue_failure(&failure, fcinfo);
	failure.error = args_content("error", PG_ARGISNULL(2), PG_GETARG_DATUM(2));

	retry_at = dequeue_nack(&delivery, &failure);
	if (TIMESTAMP_IS_NOEND(retry_at))
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(retry_at);
}

/*
 * idem_nack_many(ids bigint[], tokens bigint[], errors jsonb[], retry_in interval,
 *				  final boolean) -> void
 *
 * idem_nack for each, all or none.  Raises 2202E, too, for arrays of different
 * lengths or of several dimensions.
 */
Datum
idem_nack_many(PG_FUNCTION_ARGS)
{
	DequeueDelivery *deliveries;
	DequeueFailure failure;
	ArgsArray	errors;
	int			n;

	args_may_write("idem_nack_many()");
	record_open(true);
	deliveries = dequeue_many(fcinfo, &n);
	dequeue_failure(&failure, fcinfo);
	args_array_for(&errors, fcinfo, 2, "errors", JSONBOID, n, "id",
				   "Put null where there is none, or pass null instead of the array.");
	for (int i = 0; i < n; i++)
	{
		int			position = deliveries[i].position;

		CHECK_FOR_INTERRUPTS();
		failure.error = errors.n == 0 ? NULL :
			args_content("error", errors.isnull[position],
						 errors.values[position]);
		(void) dequeue_nack(&deliveries[i], &failure);
	}
	PG_RETURN_VOID();
}

/* All but the error. */
static void
dequeue_failure(DequeueFailure *failure, FunctionCallInfo fcinfo)
{
	failure->error = NULL;
	failure->has_retry_in =
		args_delay(&failure->retry_in, fcinfo, 3, "retry_in",
				   "Use null for the backoff of the queue, or final => true for no retry.");
	failure->final =
		args_flag(fcinfo, 4, "final",
				  "Use true for a failure that no retry can mend.");
}

/* DT_NOEND: never, it is a dead letter. */
static TimestampTz
dequeue_nack(const DequeueDelivery *delivery, const DequeueFailure *failure)
{
	const bool	wait = true;
	TimestampTz now = GetCurrentTimestamp();

	for (;;)
	{
		Message		message;
		MessageState *state = &message.state;
		Queue		queue;
		int32		max_attempts;

		dequeue_find(delivery, &message);
		queue_use(&queue, state->owner, message.queue);
		message.history = history_failed(message.history, state->attempt, now,
										 failure->error);
		max_attempts = state->max_attempts == MESSAGE_QUEUE_DECIDES ?
			queue.max_attempts : state->max_attempts;
		if (failure->final ||
			(max_attempts > 0 && state->attempt >= max_attempts))
		{
			if (!message_delete(&message, wait))
				continue;
			letter_write(&message, &queue, now);
			dequeue_gone(&message);
			counter_add(COUNTER_NACKED, 1);
			return DT_NOEND;
		}

		if (failure->has_retry_in)
			state->due_at = args_add(now, &failure->retry_in);
		else
			state->due_at = args_later(now,
									   backoff_delay(state->attempt,
													 queue.backoff_base,
													 queue.backoff_cap,
													 queue.jitter));
		state->lease_until = DT_NOBEGIN;
		state->token = 0;
		if (message_replace(&message, wait))
		{
			wake_at_commit(&queue);
			counter_add(COUNTER_NACKED, 1);
			return state->due_at;
		}
	}
}

/* ----------------------------------------------------------------
 *						Still at it
 * ----------------------------------------------------------------
 */

/*
 * idem_extend(id bigint, token bigint, lease interval) -> timestamptz
 *
 * Extends the lease of a message that was taken to "lease" from now, and returns
 * until when it is valid; it is never shortened.
 *
 * Raises as idem_ack, and 22023, 22008 for a bad lease.
 */
Datum
idem_extend(PG_FUNCTION_ARGS)
{
	DequeueDelivery delivery;
	Interval	lease;

	args_may_write("idem_extend()");
	record_open(true);
	dequeue_one(&delivery, fcinfo);
	args_lease(&lease, fcinfo, 2);
	PG_RETURN_TIMESTAMPTZ(dequeue_extend(&delivery, &lease));
}

/*
 * idem_extend_many(ids bigint[], tokens bigint[], lease interval) -> void
 *
 * idem_extend for each, all or none.  Raises 2202E, too, for arrays of different
 * lengths or of several dimensions.
 */
Datum
idem_extend_many(PG_FUNCTION_ARGS)
{
	DequeueDelivery *deliveries;
	Interval	lease;
	int			n;

	args_may_write("idem_extend_many()");
	record_open(true);
	deliveries = dequeue_many(fcinfo, &n);
	args_lease(&lease, fcinfo, 2);
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		(void) dequeue_extend(&deliveries[i], &lease);
	}
	PG_RETURN_VOID();
}

static TimestampTz
dequeue_extend(const DequeueDelivery *delivery, const Interval *lease)
{
	const bool	wait = true;
	Message		message;
	TimestampTz until;

	do
	{
		dequeue_find(delivery, &message);
		until = args_add(GetCurrentTimestamp(), lease);
		if (until > message.state.lease_until)
			message.state.lease_until = until;
	} while (!message_replace_state(&message, wait));
	return message.state.lease_until;
}
