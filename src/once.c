/*-------------------------------------------------------------------------
 *
 * once.c
 *	  Run one statement once under a key: claim, statement and finish in one
 *	  round trip.
 *
 * The statement runs as the caller, with the caller's search_path and snapshot
 * rules.  Its parameters are given as text and have the types that the statement
 * infers for them, as with PREPARE without a list of types.  If it raises an error,
 * that is the error of the call, and the claim is undone with the rest.
 *
 * The result as jsonb:
 *
 *		no result, no rows, void	NULL
 *		one row of one column		its value, as by to_jsonb(); NULL stays NULL
 *		one row of more columns		an object; the columns need different names
 *		more rows					an array of these
 *
 * Plans are kept for the session, the ones used last, and have the semantics of
 * PREPARE: what the names and the literals of the text mean is decided when the
 * session first runs it, for each role, search_path and setting that literals
 * depend on.  A plan that DDL has invalidated is made anew from the text, not
 * replanned: the types of its parameters may have changed, too.
 *
 * Anything may happen while a plan is in use, since a command, and the input of a
 * parameter whose domain has a CHECK, may call functions that call idem_once:
 * the plan may be used once more, become stale, or fall out of the list.  So it
 * is counted as used from before its parameters are read, is freed by its last
 * user, and each use has input functions of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "pgtime.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "answer.h"
#include "args.h"
#include "claim.h"
#include "compat.h"
#include "errors.h"
#include "finish.h"
#include "key.h"
#include "lease.h"
#include "once.h"
#include "realm.h"
#include "record.h"

/* So many plans are kept, unless their texts are longer than that. */
#define ONCE_MAX_PLANS		64
#define ONCE_MAX_KEPT_LEN	8192

PG_FUNCTION_INFO_V1(idem_once);

typedef struct OnceParam
{
	uint32		type_hash;		/* in the cache of types */
	Oid			ioparam;
	FmgrInfo	input;			/* to be copied */
} OnceParam;

/* What decides about the meaning of a text, beside its role and search_path. */
typedef struct OnceSettings
{
	const pg_tz *time_zone;
	int			date_style;
	int			date_order;
	int			interval_style;
	bool		standard_strings;
} OnceSettings;

typedef struct OncePlan
{
	dlist_node	node;			/* in once_plans */
	uint32		hash;			/* of command, search_path and role */
	const char *command;
	const char *search_path;
	Oid			role;
	OnceSettings settings;
	SPIPlanPtr	plan;
	int			nparams;
	OnceParam  *params;
	MemoryContext context;		/* all of it but the plan */
	int			users;			/* executions under way */
	bool		stale;			/* a type of a parameter is gone, or another */
	bool		dropped;		/* not in the list; the last user frees it */
} OncePlan;

static dlist_head once_plans = DLIST_STATIC_INIT(once_plans);	/* latest first */
static int	once_nplans = 0;

static void once_type_changed(Datum arg, int cache, uint32 hash);
static OncePlan *once_plan(const char *command);
static OncePlan *once_prepare(const char *command, uint32 hash,
							  const OnceSettings *settings);
static void once_infer_types(const char *command, Oid **types, int *ntypes);
static void once_error_position(void *arg);
static void once_drop(OncePlan *plan);
static void once_free(OncePlan *plan);
static void once_leave(OncePlan *plan);
static Jsonb *once_execute(const char *command, const ArgsArray *params);
static void once_bind(const OncePlan *plan, const ArgsArray *params,
					  Datum **values, char **nulls);
static void once_error_parameter(void *arg);
static void once_check_names(TupleDesc desc);
static Jsonb *once_result(SPITupleTable *table, uint64 nrows);
static Jsonb *once_row(FmgrInfo *convert, HeapTuple tuple, TupleDesc desc);

/*
 * idem_once(key text, command text, params text[], ttl interval,
 *			 request jsonb, scope text, wait interval)
 *		-> (outcome text, response jsonb, retry_after interval)
 *
 * Claims the key for the transaction, and if it is claimed runs the command and
 * finishes the key with its result.  Otherwise tells why not, as idem_claim.
 *
 *	command		one statement, with parameters $1, $2, ...; no transaction
 *				control, no COPY from or to the client
 *	params		their values as text, none more and none less; NULL elements are
 *				NULL
 *	the rest	as for idem_claim
 *
 * Raises as idem_claim and idem_finish, what the command raises, and 22004
 * (command null), 42601 (not one statement), 42P18 (type of a parameter not
 * to be inferred), 22023 (number of parameters), 2202E (params of several
 * dimensions), 42701 (two columns of the result with one name), 0A000 (COPY,
 * transaction control).
 */
Datum
idem_once(PG_FUNCTION_ARGS)
{
	static const Oid columns[] = {TEXTOID, JSONBOID, INTERVALOID};
	static const Oid answer_columns[] = {CLAIM_ANSWER_TYPES};
	ClaimRequest request;
	ClaimAnswer answer;
	ArgsArray	params = {NULL, NULL, 0};
	Datum		all_values[lengthof(answer_columns)];
	bool		all_isnull[lengthof(answer_columns)];
	Datum		values[lengthof(columns)];
	bool		isnull[lengthof(columns)];

	args_may_write("idem_once()");
	record_open(true);
	args_key(&request.key, fcinfo, 0, 5);
	key_fingerprint(&request.fingerprint,
					PG_ARGISNULL(4) ? NULL : PG_GETARG_JSONB_P(4));
	claim_terms(&request.terms, fcinfo, 3, 6, -1);

	if (!PG_ARGISNULL(2))
		args_array(&params, PG_GETARG_DATUM(2), "params", TEXTOID);

	once_run(&request, PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1), &params,
			 NULL, &answer);

	claim_answer_values(&answer, all_values, all_isnull);
	values[0] = all_values[0];
	isnull[0] = all_isnull[0];
	values[1] = all_values[1];
	isnull[1] = all_isnull[1];
	values[2] = all_values[4];
	isnull[2] = all_isnull[4];
	PG_RETURN_DATUM(answer_row(fcinfo, columns, lengthof(columns),
							   values, isnull));
}

/*
 * Claim, run, finish.  "result", if not NULL, makes of the result of the command
 * what is to be stored.
 */
void
once_run(const ClaimRequest *request, const text *command,
		 const ArgsArray *params, OnceResult result, ClaimAnswer *answer)
{
	PendingClaim *claim;
	Jsonb	   *response;
	int64		token = 0;

	if (command == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("command must not be null"),
				 errhint("Pass the statement to run under the key.")));

	claim_decide(request, answer);
	if (answer->outcome != CLAIM_CLAIMED)
		return;

	response = once_execute(text_to_cstring(command), params);
	if (result != NULL)
		response = result(response);
	if (response != NULL)
		response = args_response(&request->key, "response", false,
								 JsonbPGetDatum(response));

	/*
	 * The command may have done anything: to the transaction, to the
	 * extension, which may be another one, and to the claim, which may be a
	 * lease now.
	 */
	args_may_write("idem_once()");
	record_open(true);
	if (request->key.table != realm_get()->key_table ||
		(claim = lease_whose_claim(&request->key, &token)) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_NOT_CLAIMED),
				 errmsg("key \"%s\" is not claimed by this transaction any more",
						key_name(&request->key)),
				 errhint("A command must leave alone the key that it runs under.")));
	finish_claims(&claim, &response, 1);
	answer->response = response;
}

/* ----------------------------------------------------------------
 *						Plans
 * ----------------------------------------------------------------
 */

/* Register for changes of types; once, when the library is loaded. */
void
once_init(void)
{
	CacheRegisterSyscacheCallback(TYPEOID, once_type_changed, (Datum) 0);
}

/* A plan knows when its tables change, but not of the types of its parameters. */
static void
once_type_changed(Datum arg, int cache, uint32 hash)
{
	dlist_iter	iter;

	dlist_foreach(iter, &once_plans)
	{
		OncePlan   *plan = dlist_container(OncePlan, node, iter.cur);

		for (int i = 0; i < plan->nparams; i++)
			if (hash == 0 || plan->params[i].type_hash == hash)
				plan->stale = true;
	}
}

static void
once_settings(OnceSettings *settings)
{
	memset(settings, 0, sizeof(*settings));
	settings->time_zone = session_timezone;
	settings->date_style = DateStyle;
	settings->date_order = DateOrder;
	settings->interval_style = IntervalStyle;
	settings->standard_strings = standard_conforming_strings;
}

/* The plan of a command, kept or made. */
static OncePlan *
once_plan(const char *command)
{
	uint32		hash = string_hash(command, strlen(command) + 1);
	OnceSettings settings;
	dlist_iter	iter;

	hash = hash_combine(hash, string_hash(namespace_search_path,
										  strlen(namespace_search_path) + 1));
	hash = hash_combine(hash, GetUserId());
	once_settings(&settings);

	dlist_foreach(iter, &once_plans)
	{
		OncePlan   *plan = dlist_container(OncePlan, node, iter.cur);

		if (plan->hash != hash ||
			plan->role != GetUserId() ||
			strcmp(plan->command, command) != 0 ||
			strcmp(plan->search_path, namespace_search_path) != 0 ||
			memcmp(&plan->settings, &settings, sizeof(settings)) != 0)
			continue;
		if (SPI_plan_is_valid(plan->plan) && !plan->stale)
		{
			dlist_move_head(&once_plans, &plan->node);
			return plan;
		}
		once_drop(plan);
		break;
	}
	return once_prepare(command, hash, &settings);
}

/*
 * Make sure that the command is one statement, and find out which types its
 * parameters have: SPI wants to be told.
 */
static void
once_infer_types(const char *command, Oid **types, int *ntypes)
{
	ErrorContextCallback callback;
	List	   *statements;

	callback.callback = once_error_position;
	callback.arg = unconstify(char *, command);
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	statements = pg_parse_query(command);
	if (list_length(statements) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("command must be one statement"),
				 errdetail("It has %d.", list_length(statements)),
				 errhint("Put several statements into a function or a DO block.")));

	*types = NULL;
	*ntypes = 0;
	(void) parse_analyze_varparams(linitial_node(RawStmt, statements), command,
								   types, ntypes, NULL);
	for (int i = 0; i < *ntypes; i++)
		if ((*types)[i] == InvalidOid || (*types)[i] == UNKNOWNOID)
			ereport(ERROR,
					(errcode(ERRCODE_INDETERMINATE_DATATYPE),
					 errmsg("could not determine data type of parameter $%d",
							i + 1),
					 errhint("Use all parameters up to the last one, with a cast where the type does not follow from the use.")));

	error_context_stack = callback.previous;
}

/* A position is one in the command, not in the statement that calls us. */
static void
once_error_position(void *arg)
{
	const char *command = (const char *) arg;
	int			position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(command);
	}
	else
		errcontext("command \"%s\"", command);
}

static OncePlan *
once_prepare(const char *command, uint32 hash, const OnceSettings *settings)
{
	Oid		   *types;
	int			ntypes;
	SPIPlanPtr	prepared;
	MemoryContext context;
	OncePlan   *plan;

	once_infer_types(command, &types, &ntypes);
	prepared = SPI_prepare(command, ntypes, types);
	if (prepared == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));

	context = AllocSetContextCreate(CurrentMemoryContext, "idempotency plan",
									ALLOCSET_SMALL_SIZES);
	plan = MemoryContextAllocZero(context, sizeof(OncePlan));
	plan->hash = hash;
	plan->command = MemoryContextStrdup(context, command);
	plan->search_path = MemoryContextStrdup(context, namespace_search_path);
	plan->role = GetUserId();
	memcpy(&plan->settings, settings, sizeof(*settings));
	plan->context = context;
	plan->nparams = ntypes;
	plan->params = MemoryContextAlloc(context, ntypes * sizeof(OnceParam));
	for (int i = 0; i < ntypes; i++)
	{
		Oid			input;

		plan->params[i].type_hash =
			GetSysCacheHashValue1(TYPEOID, ObjectIdGetDatum(types[i]));
		getTypeInputInfo(types[i], &input, &plan->params[i].ioparam);
		fmgr_info_cxt(input, &plan->params[i].input, context);
	}

	/* from here on nothing fails, and nothing of it is lost */
	SPI_keepplan(prepared);
	plan->plan = prepared;
	MemoryContextSetParent(context, TopMemoryContext);
	if (strlen(command) > ONCE_MAX_KEPT_LEN)
	{
		plan->dropped = true;
		return plan;
	}
	dlist_push_head(&once_plans, &plan->node);
	once_nplans++;
	if (once_nplans > ONCE_MAX_PLANS)
		once_drop(dlist_tail_element(OncePlan, node, &once_plans));
	return plan;
}

/* Take a plan out of the list, and free it unless it is being executed. */
static void
once_drop(OncePlan *plan)
{
	if (!plan->dropped)
	{
		dlist_delete(&plan->node);
		once_nplans--;
		plan->dropped = true;
	}
	if (plan->users == 0)
		once_free(plan);
}

static void
once_free(OncePlan *plan)
{
	SPI_freeplan(plan->plan);
	MemoryContextDelete(plan->context);
}

/* ----------------------------------------------------------------
 *						Execution
 * ----------------------------------------------------------------
 */

/* An execution of the plan is over. */
static void
once_leave(OncePlan *plan)
{
	if (--plan->users == 0 && plan->dropped)
		once_free(plan);
}

/* Run a plan, which must outlive it. */
static int
once_call(OncePlan *plan, const ArgsArray *params)
{
	const bool	read_only = false;
	const long	all_rows = 0;
	int			code;

	plan->users++;
	PG_TRY();
	{
		Datum	   *values;
		char	   *nulls;

		once_bind(plan, params, &values, &nulls);
		code = SPI_execute_plan(plan->plan, values, nulls, read_only, all_rows);
	}
	PG_CATCH();
	{
		/* what it was made for may be gone: a type that its text names */
		if (geterrcode() == ERRCODE_INTERNAL_ERROR)
			once_drop(plan);
		once_leave(plan);
		PG_RE_THROW();
	}
	PG_END_TRY();
	once_leave(plan);
	return code;
}

/* Run the command; its result, in the caller's memory context. */
static Jsonb *
once_execute(const char *command, const ArgsArray *params)
{
	MemoryContext caller = CurrentMemoryContext;
	Jsonb	   *result = NULL;
	int			code;

	SPI_connect();
	code = once_call(once_plan(command), params);
	if (code == SPI_ERROR_COPY || code == SPI_ERROR_TRANSACTION)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 code == SPI_ERROR_COPY ?
				 errmsg("cannot COPY to or from the client under a key") :
				 errmsg("cannot run transaction control under a key"),
				 errhint("The command runs inside the transaction of idem_once.")));
	if (code < 0)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(code));

	if (SPI_tuptable != NULL)
	{
		MemoryContextSwitchTo(caller);
		result = once_result(SPI_tuptable, SPI_processed);
	}
	SPI_finish();
	return result;
}

/* The parameters of a plan, from their texts. */
static void
once_bind(const OncePlan *plan, const ArgsArray *params,
		  Datum **values, char **nulls)
{
	const int32 no_typmod = -1;
	int			position;
	ErrorContextCallback callback;

	if (params->n != plan->nparams)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("wrong number of parameters for the command"),
				 errdetail("It has %d, and %d were given.",
						   plan->nparams, params->n),
				 errhint("Pass an array with a text, or null, for each parameter.")));

	callback.callback = once_error_parameter;
	callback.arg = &position;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	*values = palloc(params->n * sizeof(Datum));
	*nulls = palloc(params->n);
	for (int i = 0; i < params->n; i++)
	{
		OnceParam  *param = &plan->params[i];
		FmgrInfo	input;

		position = i + 1;
		fmgr_info_copy(&input, &param->input, CurrentMemoryContext);
		(*nulls)[i] = params->isnull[i] ? 'n' : ' ';
		(*values)[i] = InputFunctionCall(&input,
										 params->isnull[i] ? NULL :
										 TextDatumGetCString(params->values[i]),
										 param->ioparam, no_typmod);
	}
	error_context_stack = callback.previous;
}

static void
once_error_parameter(void *arg)
{
	errcontext("parameter $%d of the command", *(int *) arg);
}

/* An object keeps only one of two members with the same name. */
static void
once_check_names(TupleDesc desc)
{
	for (int i = 1; i < desc->natts; i++)
		for (int j = 0; j < i; j++)
			if (strcmp(NameStr(TupleDescAttr(desc, i)->attname),
					   NameStr(TupleDescAttr(desc, j)->attname)) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_COLUMN),
						 errmsg("column \"%s\" of the result appears more than once",
								NameStr(TupleDescAttr(desc, i)->attname)),
						 errhint("Give the columns names of their own.")));
}

/* The rows of a result as jsonb; NULL for none. */
static Jsonb *
once_result(SPITupleTable *table, uint64 nrows)
{
	TupleDesc	desc = table->tupdesc;
	FuncExpr   *call;
	CaseTestExpr *argument = makeNode(CaseTestExpr);
	FmgrInfo	convert;
	JsonbParseState *state = NULL;
	JsonbValue *array;

	if (nrows == 0 || desc->natts == 0 ||
		(desc->natts == 1 && TupleDescAttr(desc, 0)->atttypid == VOIDOID))
		return NULL;

	once_check_names(desc);

	/* to_jsonb() asks for the type of its argument */
	argument->typeId = desc->natts == 1 ? TupleDescAttr(desc, 0)->atttypid :
		RECORDOID;
	call = makeFuncExpr(F_TO_JSONB, JSONBOID, list_make1(argument),
						InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);
	fmgr_info(F_TO_JSONB, &convert);
	fmgr_info_set_expr((Node *) call, &convert);
	if (desc->natts > 1)
		desc = BlessTupleDesc(desc);

	if (nrows == 1)
		return once_row(&convert, table->vals[0], desc);

	(void) pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (uint64 i = 0; i < nrows; i++)
	{
		JsonbValue	element;

		CHECK_FOR_INTERRUPTS();

		element = answer_jsonb_value(once_row(&convert, table->vals[i], desc));
		(void) pushJsonbValue(&state, WJB_ELEM, &element);
	}
	array = pushJsonbValue(&state, WJB_END_ARRAY, NULL);
	return JsonbValueToJsonb(array);
}

/* One row: its only column, or an object; NULL for a null. */
static Jsonb *
once_row(FmgrInfo *convert, HeapTuple tuple, TupleDesc desc)
{
	Datum		value;
	bool		isnull = false;

	if (desc->natts == 1)
		value = heap_getattr(tuple, 1, desc, &isnull);
	else
		value = heap_copy_tuple_as_datum(tuple, desc);
	return isnull ? NULL : DatumGetJsonbP(FunctionCall1(convert, value));
}
