/*-------------------------------------------------------------------------
 *
 * step.c
 *	  Flows that resume: the memoised steps of the work under a key.
 *
 * Work that has several parts asks before each whether it is done, and says so
 * when it is:
 *
 *		idem_claim (lease)
 *		for each step
 *			idem_step			done: take its result, go on
 *			the work			its writes and idem_step_finish in one
 *			idem_step_finish	transaction
 *		idem_finish
 *
 * Whoever claims the key after a crash, or after a failure that may be retried,
 * goes through the same program and comes to the first step that is not done.
 *
 * A step is fenced like the rest.  Under a lease idem_step_finish is a guard: it
 * locks the row of the key (or, for the first step, updates it), so that nobody
 * takes over before the step is committed, and raises ID003 if somebody has.
 * Two processes with one token meet at that row, too: the second one finds the
 * step done and is refused, its writes with it.  Under a transactional claim
 * nobody else is there.
 *
 * Steps belong to one life of the key, see memo.c.  That life is given its number
 * by its first step, so keys without steps carry none, and their expiry has
 * nothing to look for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "answer.h"
#include "args.h"
#include "compat.h"
#include "errors.h"
#include "key.h"
#include "lease.h"
#include "memo.h"
#include "pending.h"
#include "record.h"

PG_FUNCTION_INFO_V1(idem_step);
PG_FUNCTION_INFO_V1(idem_step_finish);
PG_FUNCTION_INFO_V1(idem_steps);

/* The steps of a key, while they are collected. */
typedef struct StepList
{
	Memo	   *steps;
	int			n;
	int			max;
} StepList;

static text *step_name(FunctionCallInfo fcinfo, int arg);
static void step_check_request(const IdemKey *key, const Memo *memo,
							   const IdemFingerprint *request);
static void step_collect(const Memo *memo, void *arg);
static int	step_compare(const void *a, const void *b);

/*
 * idem_step(key text, step text, request jsonb, scope text, token bigint)
 *		-> (done boolean, result jsonb)
 *
 * Is this step of the work under the key done?  Then its result, and it must
 * not be done again.
 *
 *	step		1 to 128 bytes; names one part of the flow
 *	request		what the step was asked to do; if it was finished with another
 *				one, the flow has changed: ID006.  NULL never differs.
 *	token		of a lease; NULL for a claim of this transaction
 *
 * Reads what is committed now and what this transaction has done, whatever its
 * snapshot.  Takes no transaction ID, locks nothing beyond ROW EXCLUSIVE on
 * idem_key and ACCESS SHARE on idem_step, and never blocks.
 *
 * Raises ID001 (no token, and not claimed by this transaction), ID002 (the key
 * is finished or has failed), ID003 (the lease is not the caller's any more),
 * ID006, 22004, 22023, 54000, 25006.
 */
Datum
idem_step(PG_FUNCTION_ARGS)
{
	static const Oid columns[] = {BOOLOID, JSONBOID};
	IdemKey		key;
	IdemRecord	record;
	IdemFingerprint request;
	PendingClaim *pending;
	Memo		memo = {0};
	text	   *step;
	int64		token;
	bool		no_token;
	Datum		values[lengthof(columns)] = {0};
	bool		isnull[lengthof(columns)] = {false, true};

	args_may_write("idem_step()");
	record_open(true);
	args_key(&key, fcinfo, 0, 3);
	step = step_name(fcinfo, 1);
	key_fingerprint(&request, PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2));
	token = args_token(PG_ARGISNULL(4), PG_GETARG_DATUM(4));

	no_token = token == 0;
	pending = lease_whose_claim(&key, &token);
	if (pending == NULL)
	{
		lease_find(&key, token, &record);
		if (record.state != IDEM_IN_PROGRESS)
			lease_raise_settled(&key, &record);
	}

	values[0] = BoolGetDatum(memo_look(pending != NULL ?
									   pending->top->work.generation :
									   record.generation,
									   VARDATA_ANY(step),
									   VARSIZE_ANY_EXHDR(step), &memo));
	if (DatumGetBool(values[0]))
	{
		/* what it wrote does not show, either */
		if (no_token && !memo.seen)
			record_raise_changed(&key);
		step_check_request(&key, &memo, &request);
		isnull[1] = memo.result == NULL;
		values[1] = JsonbPGetDatum(memo.result);
	}
	PG_RETURN_DATUM(answer_row(fcinfo, columns, lengthof(columns),
							   values, isnull));
}

/* A life of the key that had no steps gets them. */
static void
step_begin_steps(IdemRecord *record, void *arg)
{
	/* after a wait, another process with our token may have been first */
	if (record->generation == 0)
		record->generation = *(int64 *) arg;
}

/*
 * idem_step_finish(key text, step text, result jsonb, scope text,
 *					token bigint, request jsonb)
 *		-> jsonb
 *
 * Writes that a step is done, and returns its result.  To be called in the
 * transaction of the step's own writes: they commit together or not at all.
 * Includes idem_guard: until the transaction ends nobody takes the key over.
 *
 *	step, token		as for idem_step
 *	result			what a retry gets; NULL is a result like any other; up to
 *					idempotency.max_response_size
 *	request			the same as for idem_step, which compares it
 *
 * Takes a transaction ID and, under a lease, a tuple lock on the record.  Blocks
 * for a transaction that is taking the lease over or finishing a step with the
 * same token.
 *
 * Raises as idem_step, and ID002 if the step is finished already.
 */
Datum
idem_step_finish(PG_FUNCTION_ARGS)
{
	IdemKey		key;
	IdemRecord	record;
	PendingClaim *pending;
	Memo		memo;
	Memo		earlier;
	text	   *step;
	int64		generation;
	int64		token;

	args_may_write("idem_step_finish()");
	record_open(true);
	args_key(&key, fcinfo, 0, 3);
	step = step_name(fcinfo, 1);
	memo.step = VARDATA_ANY(step);
	memo.step_len = VARSIZE_ANY_EXHDR(step);
	token = args_token(PG_ARGISNULL(4), PG_GETARG_DATUM(4));
	key_fingerprint(&memo.fingerprint,
					PG_ARGISNULL(5) ? NULL : PG_GETARG_JSONB_P(5));
	memo.result = args_response(&key, "step result",
								PG_ARGISNULL(2), PG_GETARG_DATUM(2));

	pending = lease_whose_claim(&key, &token);
	if (pending != NULL)
	{
		if (pending->top->work.generation == 0)
			pending_begin_steps(pending, lease_new_token());
		generation = pending->top->work.generation;
		memo.attempt = pending->top->work.attempt;
	}
	else
	{
		/* the first step changes the row, which holds off a takeover, too */
		lease_find(&key, token, &record);
		if (record.generation != 0)
			lease_guard(&key, token, &record);
		else
		{
			generation = lease_new_token();
			if (!lease_change(&key, token, &record,
							  step_begin_steps, &generation))
				lease_raise_settled(&key, &record);
		}
		generation = record.generation;
		memo.attempt = record.attempt;
	}

	if (memo_look(generation, memo.step, memo.step_len, &earlier))
	{
		step_check_request(&key, &earlier, &memo.fingerprint);
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_FINISHED),
				 errmsg("step \"%s\" of key \"%s\" is finished already",
						text_to_cstring(step), key_name(&key)),
				 errhint("Ask idem_step first, and take the result of a step that is done.")));
	}
	memo.finished_at = GetCurrentTimestamp();
	memo_write(generation, &memo);

	if (PG_ARGISNULL(2))
		PG_RETURN_NULL();
	PG_RETURN_DATUM(PG_GETARG_DATUM(2));
}

/*
 * idem_steps(key text, scope text)
 *		-> setof (step text, result jsonb, attempt int, finished_at timestamptz)
 *
 * The steps that are done in the present life of a key, in the order in which
 * they were finished; of a key in progress, failed or finished.  Reads by the
 * snapshot of the statement, like idem_lookup; works in read-only transactions
 * and on a standby; never blocks.
 *
 * Raises 22004, 22023, 54000 for bad arguments.
 */
Datum
idem_steps(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	IdemKey		key;
	IdemRecord	record;
	PendingClaim *pending;
	StepList	list = {NULL, 0, 0};
	int64		generation = 0;

	record_open(false);
	args_key(&key, fcinfo, 0, 1);
	InitMaterializedSRF(fcinfo, 0);

	pending = pending_find(&key);
	if (pending != NULL && pending->top->state == PENDING_CLAIMED)
		generation = pending->top->work.generation;
	else if (record_read(&key, &record) &&
			 record_is_live(&record, GetCurrentTimestamp()))
		generation = record.generation;

	memo_visit(generation, step_collect, &list);
	if (list.n > 0)
		qsort(list.steps, list.n, sizeof(Memo), step_compare);
	for (int i = 0; i < list.n; i++)
	{
		const Memo *memo = &list.steps[i];
		Datum		values[4];
		bool		isnull[4] = {false};

		values[0] = PointerGetDatum(cstring_to_text_with_len(memo->step,
															 memo->step_len));
		isnull[1] = memo->result == NULL;
		values[1] = JsonbPGetDatum(memo->result);
		values[2] = Int32GetDatum(memo->attempt);
		values[3] = TimestampTzGetDatum(memo->finished_at);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
	}
	return (Datum) 0;
}

static text *
step_name(FunctionCallInfo fcinfo, int arg)
{
	text	   *step = PG_ARGISNULL(arg) ? NULL : PG_GETARG_TEXT_PP(arg);

	key_check_text("step", step, IDEM_MAX_STEP_LEN);
	if (VARSIZE_ANY_EXHDR(step) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("step must not be empty"),
				 errhint("Use a name that this part of the flow has in every run.")));
	return step;
}

/* The flow must not have changed under a step that is done. */
static void
step_check_request(const IdemKey *key, const Memo *memo,
				   const IdemFingerprint *request)
{
	if (key_fingerprints_differ(&memo->fingerprint, request))
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_STEP_DIFFERS),
				 errmsg("step \"%s\" of key \"%s\" was done before with another request",
						pnstrdup(memo->step, memo->step_len), key_name(key)),
				 errhint("Give a step that has another meaning another name.")));
}

static void
step_collect(const Memo *memo, void *arg)
{
	StepList   *list = (StepList *) arg;

	if (list->n == list->max)
	{
		list->max = Max(2 * list->max, 16);
		list->steps = list->steps == NULL ?
			palloc(list->max * sizeof(Memo)) :
			repalloc(list->steps, list->max * sizeof(Memo));
	}
	list->steps[list->n++] = *memo;
}

static int
step_compare(const void *a, const void *b)
{
	const Memo *x = (const Memo *) a;
	const Memo *y = (const Memo *) b;

	if (x->finished_at != y->finished_at)
		return x->finished_at < y->finished_at ? -1 : 1;
	return strcmp(x->step, y->step);
}
