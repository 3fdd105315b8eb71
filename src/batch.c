/*-------------------------------------------------------------------------
 *
 * batch.c
 *	  Sets of keys: idem_claim_many, idem_finish_many.
 *
 * A batch does to each key what idem_claim and idem_finish do, in one call.
 *
 * Batches that overlap must not deadlock.  So keys are claimed in one order by
 * everybody, that of their bytes, whatever order the caller has given: who
 * waits for a key holds, of this batch, only smaller ones.  It is also the
 * order of the index, whose pages are thus visited one after the other.
 *
 * The first keys are held by locks, as many as a transaction may have; the rest
 * by rows that are written ahead, see claim_hold() in claim.c.  Those held by
 * locks are written at the finish, many tuples to a WAL record.
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

#include "answer.h"
#include "args.h"
#include "claim.h"
#include "compat.h"
#include "errors.h"
#include "finish.h"
#include "key.h"
#include "lease.h"
#include "pending.h"
#include "realm.h"
#include "record.h"

/* So many claims are finished at once, to bound the memory. */
#define BATCH_CHUNK		1000

PG_FUNCTION_INFO_V1(idem_claim_many);
PG_FUNCTION_INFO_V1(idem_finish_many);

/* One key of the batch, and where it was given. */
typedef struct BatchKey
{
	IdemKey		key;
	int			position;
} BatchKey;

static void batch_finish_claims(MemoryContext context,
								PendingClaim *const *claims,
								Jsonb *const *responses, int n);
static BatchKey *batch_keys(FunctionCallInfo fcinfo, int keys_arg,
							int scope_arg, ArgsArray *given);
static void batch_array(ArgsArray *array, FunctionCallInfo fcinfo, int arg,
						const char *name, Oid type, int nkeys);
static int	batch_compare(const void *a, const void *b);

/*
 * idem_claim_many(keys text[], ttl interval, requests jsonb[], scope text,
 *				   wait interval, lease interval, takeover text, holder text)
 *		-> setof (key text, outcome text, response jsonb, token bigint,
 *				  attempt int, retry_after interval)
 *
 * Claims each of the keys, or tells why not: a row for each, in the order given.
 *
 *	keys		NULL for none; none of them may be null; one that is given again
 *				is in_progress
 *	requests	one for each key, or NULL
 *	wait		for transactions, and for all keys together; leases are not waited for
 *	the rest	as for idem_claim
 *
 * Locks and raises as idem_claim, and 2202E for arrays of different lengths or
 * of several dimensions.  An error undoes the claims of the whole batch, with
 * its (sub)transaction.
 */
Datum
idem_claim_many(PG_FUNCTION_ARGS)
{
	static const Oid columns[] = {TEXTOID, CLAIM_ANSWER_TYPES};
	ReturnSetInfo *rsinfo;
	ClaimRequest request;
	ClaimAnswer *answers;
	ArgsArray	given;
	ArgsArray	requests;
	BatchKey   *keys;
	ClaimSeries series;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;
	char	   *holder;

	args_may_write("idem_claim_many()");
	record_open(true);
	rsinfo = answer_rows(fcinfo, columns, lengthof(columns));
	keys = batch_keys(fcinfo, 0, 3, &given);
	batch_array(&requests, fcinfo, 2, "requests", JSONBOID, given.n);
	claim_terms(&request.terms, fcinfo, 1, 4, 5);

	answers = MemoryContextAllocHuge(caller, given.n * sizeof(ClaimAnswer));
	context = AllocSetContextCreate(caller, "idempotency key of a batch",
									ALLOCSET_DEFAULT_SIZES);
	holder = request.terms.holder;
	claim_begin_series(&series, realm_get()->key_table);
	for (int i = 0; i < given.n; i++)
	{
		int			position = keys[i].position;
		ClaimAnswer *answer = &answers[position];
		bool		none = requests.n == 0 || requests.isnull[position];

		MemoryContextSwitchTo(context);
		request.key = keys[i].key;
		key_fingerprint(&request.fingerprint, none ? NULL :
						DatumGetJsonbP(requests.values[position]));

		/* a key that comes again is busy, not a holder who has lost an answer */
		request.terms.holder =
			i > 0 && key_equal(&keys[i].key, &keys[i - 1].key) ? NULL : holder;
		claim_decide_next(&request, &series, answer);

		MemoryContextSwitchTo(caller);
		if (answer->response != NULL)
			answer->response = DatumGetJsonbPCopy(JsonbPGetDatum(answer->response));
		MemoryContextReset(context);
	}
	claim_end_series(&series);
	MemoryContextDelete(context);

	for (int i = 0; i < given.n; i++)
	{
		Datum		values[lengthof(columns)];
		bool		isnull[lengthof(columns)];

		isnull[0] = false;
		values[0] = given.values[i];
		claim_answer_values(&answers[i], values + 1, isnull + 1);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
	}
	return (Datum) 0;
}

/*
 * idem_finish_many(keys text[], responses jsonb[], scope text, tokens bigint[])
 *		-> setof (key text, response jsonb)
 *
 * Finishes each of the keys, all or none, and returns the responses in the order
 * given.
 *
 *	keys		NULL for none
 *	responses	one for each key, or NULL for none at all
 *	tokens		one for each key, or NULL; a null one stands for a claim of this
 *				transaction, others for leases
 *
 * Raises as idem_finish, ID002 for a key that is given twice without a token,
 * and 2202E for arrays of different lengths or of several dimensions.
 */
Datum
idem_finish_many(PG_FUNCTION_ARGS)
{
	static const Oid columns[] = {TEXTOID, JSONBOID};
	ReturnSetInfo *rsinfo;
	ArgsArray	given;
	ArgsArray	responses;
	ArgsArray	tokens;
	BatchKey   *keys;
	PendingClaim *claims[BATCH_CHUNK];
	Jsonb	   *chunk[BATCH_CHUNK];
	Jsonb	  **stored;
	int			nclaims = 0;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;

	args_may_write("idem_finish_many()");
	record_open(true);
	rsinfo = answer_rows(fcinfo, columns, lengthof(columns));
	keys = batch_keys(fcinfo, 0, 2, &given);
	batch_array(&responses, fcinfo, 1, "responses", JSONBOID, given.n);
	batch_array(&tokens, fcinfo, 3, "tokens", INT8OID, given.n);

	stored = MemoryContextAllocHuge(caller, given.n * sizeof(Jsonb *));
	context = AllocSetContextCreate(caller, "idempotency keys of a batch",
									ALLOCSET_DEFAULT_SIZES);
	for (int i = 0; i < given.n; i++)
	{
		const IdemKey *key = &keys[i].key;
		int			position = keys[i].position;
		PendingClaim *claim;
		int64		token;

		CHECK_FOR_INTERRUPTS();

		token = tokens.n == 0 ? 0 :
			args_token(tokens.isnull[position], tokens.values[position]);
		claim = lease_whose_claim(key, &token);
		stored[position] = responses.n == 0 ? NULL :
			args_response(key, "response", responses.isnull[position],
						  responses.values[position]);
		if (claim == NULL)
		{
			Jsonb	   *response;

			MemoryContextSwitchTo(context);
			response = finish_lease(key, token, stored[position]);
			MemoryContextSwitchTo(caller);
			if (response != NULL && response != stored[position])
				response = DatumGetJsonbPCopy(JsonbPGetDatum(response));
			stored[position] = response;
			MemoryContextReset(context);
			continue;
		}

		/* sorted: the same claim again would come right behind */
		if (nclaims > 0 && claims[nclaims - 1] == claim)
			lease_raise_finished(key);
		claims[nclaims] = claim;
		chunk[nclaims++] = stored[position];
		if (nclaims == BATCH_CHUNK)
		{
			batch_finish_claims(context, claims, chunk, nclaims);
			nclaims = 0;
		}
	}
	if (nclaims > 0)
		batch_finish_claims(context, claims, chunk, nclaims);
	MemoryContextDelete(context);

	for (int i = 0; i < given.n; i++)
	{
		Datum		values[lengthof(columns)];
		bool		isnull[lengthof(columns)];

		isnull[0] = false;
		values[0] = given.values[i];
		isnull[1] = stored[i] == NULL;
		values[1] = JsonbPGetDatum(stored[i]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
	}
	return (Datum) 0;
}

static void
batch_finish_claims(MemoryContext context, PendingClaim *const *claims,
					Jsonb *const *responses, int n)
{
	MemoryContext saved = MemoryContextSwitchTo(context);

	finish_claims(claims, responses, n);
	MemoryContextSwitchTo(saved);
	MemoryContextReset(context);
}

/* The keys of the batch, in the order in which they are to be worked on. */
static BatchKey *
batch_keys(FunctionCallInfo fcinfo, int keys_arg, int scope_arg,
		   ArgsArray *given)
{
	const text *scope = NULL;
	BatchKey   *keys;

	if (!PG_ARGISNULL(scope_arg))
		scope = PG_GETARG_TEXT_PP(scope_arg);

	/* array_agg() of no rows is null */
	given->n = 0;
	if (!PG_ARGISNULL(keys_arg))
		args_array(given, PG_GETARG_DATUM(keys_arg), "keys", TEXTOID);
	key_check_text("scope", scope, IDEM_MAX_SCOPE_LEN);

	keys = MemoryContextAllocHuge(CurrentMemoryContext,
								  given->n * sizeof(BatchKey));
	for (int i = 0; i < given->n; i++)
	{
		key_make(&keys[i].key, given->isnull[i] ? NULL :
				 DatumGetTextPP(given->values[i]), scope);
		keys[i].position = i;
	}
	qsort(keys, given->n, sizeof(BatchKey), batch_compare);
	return keys;
}

/* One that has an element for each key, or is NULL. */
static void
batch_array(ArgsArray *array, FunctionCallInfo fcinfo, int arg,
			const char *name, Oid type, int nkeys)
{
	args_array_for(array, fcinfo, arg, name, type, nkeys, "key",
				   "Put null where a key has none, or pass null instead of the array.");
}

/* The same key comes in the order given. */
static int
batch_compare(const void *a, const void *b)
{
	const BatchKey *x = (const BatchKey *) a;
	const BatchKey *y = (const BatchKey *) b;
	int			cmp = memcmp(x->key.key, y->key.key,
							 Min(x->key.key_len, y->key.key_len));

	if (cmp == 0)
		cmp = x->key.key_len - y->key.key_len;
	return cmp != 0 ? cmp : x->position - y->position;
}
