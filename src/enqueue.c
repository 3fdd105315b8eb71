/*-------------------------------------------------------------------------
 *
 * enqueue.c
 *	  Messages come in: idem_enqueue, idem_enqueue_many, idem_receive.
 *
 * A message is a row that is inserted in the caller's transaction: others can take
 * it once that has committed, and not at all if it does not.  That is the outbox.
 *
 * A message with a key is enqueued once: the key is claimed, and finished with the
 * id of the message as its response, like any other key, in the scope "queue:"
 * followed by the name of the queue.  So whoever comes with the same key waits for
 * a transaction that has it, gets the id, raises 40001 where a claim does, and
 * leaves the rest (retention, expiry, idem_lookup, idem_forget) to what there is.
 *
 * The inbox is the same, with a key made of the names of the source and the message.
 *
 * Messages of one group are numbered under a lock of the group, which is held to
 * the end of the transaction.  Thus the order of the numbers is that in which they
 * become visible, and there is no message that would come before one that has been
 * taken already.
 *
 * Batches that overlap do not deadlock: keys and groups are locked in one order by
 * all, the keys first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/int.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "answer.h"
#include "args.h"
#include "claim.h"
#include "compat.h"
#include "counter.h"
#include "errors.h"
#include "finish.h"
#include "key.h"
#include "message.h"
#include "pending.h"
#include "queue.h"
#include "realm.h"
#include "record.h"
#include "wake.h"

/* What the messages of one call have in common. */
typedef struct EnqueueTerms
{
	Queue		queue;
	TimestampTz now;
	TimestampTz due_at;
	int32		max_attempts;
	int16		priority;
	ClaimTerms	claim;
} EnqueueTerms;

/* A message that is to be enqueued. */
typedef struct EnqueueItem
{
	Message		message;
	IdemKey		key;			/* if message.key is one */
	PendingClaim *claim;		/* likewise, if it is enqueued now */
	int64		id;				/* once it is known */
	int			same_as;		/* an item with the same key, or -1 */
	bool		duplicate;
} EnqueueItem;

PG_FUNCTION_INFO_V1(idem_enqueue);
PG_FUNCTION_INFO_V1(idem_enqueue_many);
PG_FUNCTION_INFO_V1(idem_receive);

static void enqueue_terms(EnqueueTerms *terms, FunctionCallInfo fcinfo,
						  int delay_arg, int max_attempts_arg,
						  int priority_arg, int ttl_arg);
static void enqueue_item(EnqueueItem *item, const EnqueueTerms *terms,
						 Jsonb *payload, Jsonb *headers, text *key,
						 text *group);
static void enqueue_items(const EnqueueTerms *terms, EnqueueItem *items, int n);
static void enqueue_claim_keys(const EnqueueTerms *terms, EnqueueItem *items,
							   int n);
static void enqueue_lock_groups(const Queue *queue, const EnqueueItem *items,
								int n);
static void enqueue_finish_keys(EnqueueItem *items, int n);
static void enqueue_array(ArgsArray *array, FunctionCallInfo fcinfo, int arg,
						  const char *name, Oid type, int n);
static Jsonb *enqueue_content(const ArgsArray *array, int i, const char *what);
static text *enqueue_text(const ArgsArray *array, int i);
static Jsonb *enqueue_id_to_jsonb(int64 id);
static int64 enqueue_id_of(const IdemKey *key, const ClaimAnswer *answer);
static int	enqueue_compare_keys(const void *a, const void *b);
static int	enqueue_compare_hashes(const void *a, const void *b);

/*
 * idem_enqueue(queue text, payload jsonb, key text, delay interval,
 *				max_attempts int, priority int, message_group text,
 *				headers jsonb, ttl interval, owner text) -> bigint
 *
 * Puts a message into a queue, and returns its id.
 *
 *	queue			1 to 63 bytes; it need not be created
 *	payload			what is to be delivered, up to idempotency.max_response_size
 *	key				the message is enqueued once under it, and repeats get the id of
 *					the first; 1 to 512 bytes; NULL for no such check
 *	delay			from now, until it can be taken; NULL for none
 *	max_attempts	after so many it becomes a dead letter; 0: never, NULL: as the
 *					queue has it
 *	priority		lower numbers first, -32768 to 32767
 *	message_group	messages of a group are taken one at a time, in order; 1 to 512
 *					bytes; NULL for none
 *	headers			what there is to be said about the payload
 *	ttl				how long the key is remembered; NULL: setting default_ttl
 *	owner			whose queue, the name of a role, or the number of one that is
 *					gone; NULL: the current user's
 *
 * Takes a transaction ID.  With a key it locks it as idem_claim does, and waits for
 * a transaction that enqueues under it.  With a group it takes an advisory lock of
 * class 0x4946 to the end of the transaction, and waits for others that put
 * something into the group.
 *
 * Raises 22004, 22023, 22008, 54000 (bad arguments), 42501 (not shared), 42704 (no
 * such role), 40001 (as idem_claim), ID002 (the key is used for something else),
 * 25006.
 */
Datum
idem_enqueue(PG_FUNCTION_ARGS)
{
	EnqueueTerms terms;
	EnqueueItem item;

	args_may_write("idem_enqueue()");
	record_open(true);
	queue_argument(&terms.queue, fcinfo, 0, 9);
	enqueue_terms(&terms, fcinfo, 3, 4, 5, 8);
	enqueue_item(&item, &terms,
				 args_content("payload", PG_ARGISNULL(1), PG_GETARG_DATUM(1)),
				 args_content("headers", PG_ARGISNULL(7), PG_GETARG_DATUM(7)),
				 PG_ARGISNULL(2) ? NULL : PG_GETARG_TEXT_PP(2),
				 PG_ARGISNULL(6) ? NULL : PG_GETARG_TEXT_PP(6));

	enqueue_items(&terms, &item, 1);
	PG_RETURN_INT64(item.id);
}

/*
 * idem_enqueue_many(queue text, payloads jsonb[], keys text[], delay interval,
 *					 max_attempts int, priority int, message_groups text[],
 *					 headers jsonb[], ttl interval, owner text)
 *		-> setof (id bigint, duplicate boolean)
 *
 * Puts many messages into a queue; answers in the order given.  Keys, groups and
 * headers are NULL, or have an element for each payload.
 *
 * The rest is as for idem_enqueue; raises 2202E, too, for arrays of different
 * lengths or of several dimensions.
 */
Datum
idem_enqueue_many(PG_FUNCTION_ARGS)
{
	static const Oid columns[] = {INT8OID, BOOLOID};
	ReturnSetInfo *rsinfo;
	EnqueueTerms terms;
	EnqueueItem *items;
	ArgsArray	payloads = {NULL, NULL, 0};
	ArgsArray	keys;
	ArgsArray	groups;
	ArgsArray	headers;

	args_may_write("idem_enqueue_many()");
	record_open(true);
	rsinfo = answer_rows(fcinfo, columns, lengthof(columns));
	queue_argument(&terms.queue, fcinfo, 0, 9);
	enqueue_terms(&terms, fcinfo, 3, 4, 5, 8);

	/* array_agg() of no rows is null */
	if (!PG_ARGISNULL(1))
		args_array(&payloads, PG_GETARG_DATUM(1), "payloads", JSONBOID);
	enqueue_array(&keys, fcinfo, 2, "keys", TEXTOID, payloads.n);
	enqueue_array(&groups, fcinfo, 6, "message_groups", TEXTOID, payloads.n);
	enqueue_array(&headers, fcinfo, 7, "headers", JSONBOID, payloads.n);

	items = MemoryContextAllocHuge(CurrentMemoryContext,
								   payloads.n * sizeof(EnqueueItem));
	for (int i = 0; i < payloads.n; i++)
		enqueue_item(&items[i], &terms,
					 enqueue_content(&payloads, i, "payload"),
					 enqueue_content(&headers, i, "headers"),
					 enqueue_text(&keys, i), enqueue_text(&groups, i));
	enqueue_items(&terms, items, payloads.n);

	for (int i = 0; i < payloads.n; i++)
	{
		Datum		values[lengthof(columns)];
		bool		isnull[lengthof(columns)] = {false, false};

		values[0] = Int64GetDatum(items[i].id);
		values[1] = BoolGetDatum(items[i].duplicate);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
	}
	return (Datum) 0;
}

/*
 * idem_receive(source text, message_id text, payload jsonb, queue text,
 *				headers jsonb, ttl interval, message_group text, owner text)
 *		-> (id bigint, duplicate boolean)
 *
 * Puts what a source has sent into a queue, once; "duplicate" says that it had come
 * before.  The same as idem_enqueue under the key source/message_id.
 *
 *	source			who has sent it, 1 to 63 bytes without a slash
 *	message_id		the source's own name of it; with the source up to 511 bytes
 *	queue			NULL: that of the name of the source
 *	the rest		as for idem_enqueue
 *
 * Locks and raises as idem_enqueue.
 */
Datum
idem_receive(PG_FUNCTION_ARGS)
{
	static const Oid columns[] = {INT8OID, BOOLOID};
	EnqueueTerms terms;
	EnqueueItem item;
	const text *source;
	text	   *key;
	Datum		values[lengthof(columns)];
	bool		isnull[lengthof(columns)] = {false, false};

	args_may_write("idem_receive()");
	record_open(true);
	source = queue_name_argument(fcinfo, 0, "source");
	if (memchr(VARDATA_ANY(source), '/', VARSIZE_ANY_EXHDR(source)) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("source must not contain a slash"),
				 errhint("Use a name such as 'stripe'.")));
	if (PG_ARGISNULL(1) || VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(1)) == 0)
		ereport(ERROR,
				(errcode(PG_ARGISNULL(1) ? ERRCODE_NULL_VALUE_NOT_ALLOWED :
						 ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("message_id must not be %s",
						PG_ARGISNULL(1) ? "null" : "empty"),
				 errhint("Use the identifier that the source sends with every repeat.")));
	key = cstring_to_text(psprintf("%s/%s", text_to_cstring(source),
								   text_to_cstring(PG_GETARG_TEXT_PP(1))));
	if (PG_ARGISNULL(3))
		queue_of_owner(&terms.queue, source, fcinfo, 7);
	else
		queue_argument(&terms.queue, fcinfo, 3, 7);
	enqueue_terms(&terms, fcinfo, -1, -1, -1, 5);
	enqueue_item(&item, &terms,
				 args_content("payload", PG_ARGISNULL(2), PG_GETARG_DATUM(2)),
				 args_content("headers", PG_ARGISNULL(4), PG_GETARG_DATUM(4)),
				 key, PG_ARGISNULL(6) ? NULL : PG_GETARG_TEXT_PP(6));

	enqueue_items(&terms, &item, 1);
	values[0] = Int64GetDatum(item.id);
	values[1] = BoolGetDatum(item.duplicate);
	PG_RETURN_DATUM(answer_row(fcinfo, columns, lengthof(columns),
							   values, isnull));
}

/* ----------------------------------------------------------------
 *						Arguments
 * ----------------------------------------------------------------
 */

/* Negative numbers stand for arguments that the function does not have. */
static void
enqueue_terms(EnqueueTerms *terms, FunctionCallInfo fcinfo, int delay_arg,
			  int max_attempts_arg, int priority_arg, int ttl_arg)
{
	Interval	delay;

	memset(&terms->claim, 0, sizeof(terms->claim));
	terms->claim.has_ttl = args_ttl(&terms->claim.ttl, fcinfo, ttl_arg);
	terms->claim.wait.mode = IDEM_WAIT_FOREVER;

	terms->now = GetCurrentTimestamp();
	terms->due_at = terms->now;
	terms->max_attempts = MESSAGE_QUEUE_DECIDES;
	terms->priority = 0;
	if (delay_arg < 0)
		return;

	if (args_delay(&delay, fcinfo, delay_arg, "delay",
				   "Use null for a message that can be taken at once."))
		terms->due_at = args_add(terms->now, &delay);
	terms->max_attempts = args_max_attempts(fcinfo, max_attempts_arg,
											MESSAGE_QUEUE_DECIDES);
	if (PG_ARGISNULL(priority_arg) ||
		PG_GETARG_INT32(priority_arg) < PG_INT16_MIN ||
		PG_GETARG_INT32(priority_arg) > PG_INT16_MAX)
		ereport(ERROR,
				(errcode(PG_ARGISNULL(priority_arg) ?
						 ERRCODE_NULL_VALUE_NOT_ALLOWED :
						 ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("priority must be a number from %d to %d",
						PG_INT16_MIN, PG_INT16_MAX),
				 errhint("Lower numbers come first; 0 is the default.")));
	terms->priority = PG_GETARG_INT32(priority_arg);
}

static void
enqueue_item(EnqueueItem *item, const EnqueueTerms *terms, Jsonb *payload,
			 Jsonb *headers, text *key, text *group)
{
	Message    *message = &item->message;

	if (payload == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("payload must not be null"),
				 errhint("Use '{}' or 'null'::jsonb for a message that says nothing.")));
	if (group != NULL)
	{
		key_check_text("message_group", group, IDEM_MAX_KEY_LEN);
		if (VARSIZE_ANY_EXHDR(group) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("message_group must not be empty"),
					 errhint("Use null for a message that is in no group.")));
	}

	memset(item, 0, sizeof(*item));
	item->same_as = -1;
	if (key != NULL)
		key_make_of(&item->key, terms->queue.owner, key,
					queue_scope(&terms->queue));

	message->state.enqueued_at = terms->now;
	message->state.due_at = terms->due_at;
	message->state.lease_until = DT_NOBEGIN;
	message->state.queue_hash = terms->queue.hash;
	message->state.owner = terms->queue.owner;
	message->state.max_attempts = terms->max_attempts;
	message->state.priority = terms->priority;
	message->queue = unconstify(text *, terms->queue.name);
	message->group = group;
	message->key = key;
	message->headers = headers;
	message->payload = payload;
}

/* One that has an element for each payload, or is NULL. */
static void
enqueue_array(ArgsArray *array, FunctionCallInfo fcinfo, int arg,
			  const char *name, Oid type, int n)
{
	args_array_for(array, fcinfo, arg, name, type, n, "payload",
				   "Put null where a message has none, or pass null instead of the array.");
}

static Jsonb *
enqueue_content(const ArgsArray *array, int i, const char *what)
{
	if (array->n == 0)
		return NULL;
	return args_content(what, array->isnull[i], array->values[i]);
}

static text *
enqueue_text(const ArgsArray *array, int i)
{
	if (array->n == 0 || array->isnull[i])
		return NULL;
	return DatumGetTextPP(array->values[i]);
}

/* ----------------------------------------------------------------
 *						Work
 * ----------------------------------------------------------------
 */

static void
enqueue_items(const EnqueueTerms *terms, EnqueueItem *items, int n)
{
	Message    *messages = MemoryContextAllocHuge(CurrentMemoryContext,
												  n * sizeof(Message));
	int			nmessages = 0;

	enqueue_claim_keys(terms, items, n);
	enqueue_lock_groups(&terms->queue, items, n);
	for (int i = 0; i < n; i++)
	{
		MessageState *state = &items[i].message.state;

		if (items[i].duplicate)
			continue;
		/* no two at the same time: see ready.c about floors */
		state->due_at = args_later(state->due_at, i);
		state->id = state->place = message_new_id();
		items[i].id = state->id;
		messages[nmessages++] = items[i].message;
	}
	if (nmessages > 0)
	{
		message_insert(messages, nmessages);
		wake_at_commit(&terms->queue);
	}
	enqueue_finish_keys(items, n);
	counter_add(COUNTER_ENQUEUED, nmessages);
	counter_add(COUNTER_DUPLICATES, n - nmessages);

	for (int i = 0; i < n; i++)
		if (items[i].same_as >= 0)
			items[i].id = items[items[i].same_as].id;
}

/* Find out which messages have been enqueued before, and claim the other keys. */
static void
enqueue_claim_keys(const EnqueueTerms *terms, EnqueueItem *items, int n)
{
	EnqueueItem **keyed = palloc(n * sizeof(EnqueueItem *));
	int			nkeyed = 0;
	ClaimRequest request;
	ClaimSeries series;

	for (int i = 0; i < n; i++)
		if (items[i].message.key != NULL)
			keyed[nkeyed++] = &items[i];
	if (nkeyed == 0)
		return;
	qsort(keyed, nkeyed, sizeof(EnqueueItem *), enqueue_compare_keys);

	memset(&request, 0, sizeof(request));
	request.terms = terms->claim;
	if (nkeyed > 1)
		claim_begin_series(&series, realm_get()->key_table);
	for (int i = 0; i < nkeyed; i++)
	{
		EnqueueItem *item = keyed[i];
		ClaimAnswer answer;

		/* the first of those with the same key is the one that counts */
		if (i > 0 && key_equal(&item->key, &keyed[i - 1]->key))
		{
			item->duplicate = true;
			item->same_as = keyed[i - 1]->same_as >= 0 ?
				keyed[i - 1]->same_as : (int) (keyed[i - 1] - items);
			continue;
		}

		request.key = item->key;
		if (nkeyed > 1)
			claim_decide_next(&request, &series, &answer);
		else
			claim_decide(&request, &answer);
		if (answer.outcome == CLAIM_CLAIMED)
			item->claim = pending_find(&item->key);
		else
		{
			item->duplicate = true;
			item->id = enqueue_id_of(&item->key, &answer);
		}
	}
	if (nkeyed > 1)
		claim_end_series(&series);
}

/* Each group once, in an order that is the same for all. */
static void
enqueue_lock_groups(const Queue *queue, const EnqueueItem *items, int n)
{
	uint64	   *hashes = palloc(n * sizeof(uint64));
	int			nhashes = 0;

	for (int i = 0; i < n; i++)
		if (!items[i].duplicate && items[i].message.group != NULL)
			hashes[nhashes++] = queue_group_hash(queue, items[i].message.group);
	qsort(hashes, nhashes, sizeof(uint64), enqueue_compare_hashes);
	for (int i = 0; i < nhashes; i++)
		if (i == 0 || hashes[i] != hashes[i - 1])
			lock_group(hashes[i]);
	pfree(hashes);
}

static void
enqueue_finish_keys(EnqueueItem *items, int n)
{
	PendingClaim **claims = palloc(n * sizeof(PendingClaim *));
	Jsonb	  **responses = palloc(n * sizeof(Jsonb *));
	int			nclaims = 0;

	for (int i = 0; i < n; i++)
		if (items[i].claim != NULL)
		{
			claims[nclaims] = items[i].claim;
			responses[nclaims++] = enqueue_id_to_jsonb(items[i].id);
		}
	if (nclaims > 0)
		finish_claims(claims, responses, nclaims);
	pfree(claims);
	pfree(responses);
}

static Jsonb *
enqueue_id_to_jsonb(int64 id)
{
	JsonbValue	value = {.type = jbvNumeric};

	value.val.numeric = int64_to_numeric(id);
	return JsonbValueToJsonb(&value);
}

/* The id of the message that was enqueued under a key. */
static int64
enqueue_id_of(const IdemKey *key, const ClaimAnswer *answer)
{
	JsonbValue	value;

	if (answer->outcome == CLAIM_REPLAYED && answer->response != NULL &&
		JsonbExtractScalar(&answer->response->root, &value) &&
		value.type == jbvNumeric)
	{
		Datum		number = NumericGetDatum(value.val.numeric);
		char	   *digits = DatumGetCString(DirectFunctionCall1(numeric_out, number));

		if (strspn(digits, "0123456789") == strlen(digits) && strlen(digits) < 19)
			return strtoll(digits, NULL, 10);
	}
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_FINISHED),
			 errmsg("key \"%s\" is used for something else than a message",
					key_name(key)),
			 errdetail("It is a key in the scope \"%s\", which is that of the messages of a queue.",
					   pnstrdup(key->scope, key->scope_len)),
			 errhint("Use another scope for keys of your own.")));
}

static int
enqueue_compare_keys(const void *a, const void *b)
{
	const EnqueueItem *left = *(EnqueueItem *const *) a;
	const EnqueueItem *right = *(EnqueueItem *const *) b;
	int			result;

	result = memcmp(left->key.key, right->key.key,
					Min(left->key.key_len, right->key.key_len));
	if (result == 0)
		result = left->key.key_len - right->key.key_len;
	if (result == 0)
		result = left < right ? -1 : 1; /* in the order given */
	return result;
}

static int
enqueue_compare_hashes(const void *a, const void *b)
{
	uint64		left = *(const uint64 *) a;
	uint64		right = *(const uint64 *) b;

	return left < right ? -1 : left > right;
}
