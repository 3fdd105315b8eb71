/*-------------------------------------------------------------------------
 *
 * http.c
 *	  The Idempotency-Key header, for servers that turn requests into calls.
 *
 * PostgREST and its like run one statement for a request and pass the rest in
 * settings: request.headers, request.method, request.path, request.jwt.claims
 * to the statement, response.status and response.headers back to the server.
 * idem_http does between these what a handler would do by hand, as the IETF
 * draft "The Idempotency-Key HTTP Header Field"
 * (draft-ietf-httpapi-idempotency-key-header) has it:
 *
 *		claimed			runs the command, answers its result
 *		replayed		the same body, status and headers, and
 *						Idempotency-Replayed: true
 *		no key			400
 *		in_progress		409, Retry-After
 *		held			409: somebody has to find out what was done
 *		mismatch		422
 *		retry_later		503, Retry-After
 *		failed			the error that was stored, with its own status or 500, and
 *						Idempotency-Replayed: true
 *
 * Bodies of these errors are problem details (RFC 9457).  None of them is an SQL
 * error, so the transaction commits, and what else it did with it.
 *
 * What is stored is {"idem_http": 1, "body", "status", "headers"}: the command
 * may have set the latter two, and a repeat must not differ in them.  The first
 * member tells it from the response of a key that was finished by other means.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "answer.h"
#include "args.h"
#include "claim.h"
#include "compat.h"
#include "key.h"
#include "once.h"
#include "record.h"

/* The member that tells what idem_http has stored. */
#define HTTP_ENVELOPE	"idem_http"

PG_FUNCTION_INFO_V1(idem_http);

static char *http_request_key(void);
static char *http_unquote(const char *header);
static char *http_request_scope(void);
static char *http_digest(const StringInfoData *value);
static Jsonb *http_params_as_request(const ArgsArray *params);
static Jsonb *http_envelope(Jsonb *body);
static Jsonb *http_answer(const ClaimAnswer *answer);
static Jsonb *http_body(Jsonb *stored);
static void http_restore(Jsonb *stored);
static const char *http_seconds_until(TimestampTz until);
static Jsonb *http_problem(int status, const char *title, const char *detail);
static int	http_stored_status(Jsonb *error);
static char *http_get(const char *setting);
static Jsonb *http_get_json(const char *setting);
static void http_set(const char *setting, const char *value);
static void http_add_header(const char *name, const char *value);
static JsonbValue *http_member(Jsonb *object, const char *name);
static JsonbValue http_string(const char *value);
static JsonbValue http_number(int value);
static void http_push(JsonbParseState **state, const char *name,
					  JsonbValue value);

/*
 * idem_http(command text, params text[], ttl interval, request jsonb,
 *			 scope text, wait interval)
 *		-> jsonb
 *
 * Runs the command once under the key that the request's Idempotency-Key header
 * names, and returns the body of the response.
 *
 *	request		NULL: the params
 *	scope		NULL: subject of the JWT, method and path of the request
 *	the rest	as for idem_once
 *
 * Sets response.status and response.headers for the transaction, where the
 * answer is not the server's default.  Raises as idem_once; a key that is
 * missing or too long is no error but status 400.
 */
Datum
idem_http(PG_FUNCTION_ARGS)
{
	ClaimRequest request;
	ClaimAnswer answer;
	ArgsArray	params = {NULL, NULL, 0};
	char	   *name;
	Jsonb	   *asked;
	Jsonb	   *body;

	args_may_write("idem_http()");
	record_open(true);

	name = http_request_key();
	if (name == NULL || name[0] == '\0' || strlen(name) > IDEM_MAX_KEY_LEN)
		PG_RETURN_JSONB_P(http_problem(400, "Idempotency-Key is missing or malformed",
									   "This operation needs the header Idempotency-Key: a string of 1 to 512 bytes, new for each operation and the same for its retries."));
	key_make(&request.key, cstring_to_text(name),
			 PG_ARGISNULL(4) ? cstring_to_text(http_request_scope()) :
			 PG_GETARG_TEXT_PP(4));

	if (!PG_ARGISNULL(1))
		args_array(&params, PG_GETARG_DATUM(1), "params", TEXTOID);
	asked = PG_ARGISNULL(3) ? http_params_as_request(&params) :
		PG_GETARG_JSONB_P(3);
	key_fingerprint(&request.fingerprint, asked);
	claim_terms(&request.terms, fcinfo, 2, 5, -1);

	once_run(&request, PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0), &params,
			 http_envelope, &answer);
	body = http_answer(&answer);
	if (body == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(body);
}

/* ----------------------------------------------------------------
 *						The request
 * ----------------------------------------------------------------
 */

/* The key that the client sent, or NULL. */
static char *
http_request_key(void)
{
	Jsonb	   *headers = http_get_json("request.headers");
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	value;
	const bool	skip_nested = true;
	bool		wanted = false;

	if (headers == NULL || !JB_ROOT_IS_OBJECT(headers))
		return NULL;

	/* names of headers are the same in any case */
	it = JsonbIteratorInit(&headers->root);
	while ((token = JsonbIteratorNext(&it, &value, skip_nested)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			wanted = pg_strcasecmp("idempotency-key",
								   pnstrdup(value.val.string.val,
											value.val.string.len)) == 0;
		else if (token == WJB_VALUE && wanted && value.type == jbvString)
			return http_unquote(pnstrdup(value.val.string.val,
										 value.val.string.len));
	}
	return NULL;
}

/*
 * The draft wants a string in double quotes (RFC 8941, section 3.3.3), which may
 * have parameters; many clients send it bare.  All mean the same key.  NULL if it
 * is none of these.
 */
static char *
http_unquote(const char *header)
{
	StringInfoData key;
	const char *p = header;

	initStringInfo(&key);
	p += strspn(p, " \t");
	if (*p != '"')
	{
		appendStringInfoString(&key, p);
		while (key.len > 0 && strchr(" \t", key.data[key.len - 1]) != NULL)
			key.data[--key.len] = '\0';
		return key.data;
	}

	for (p++; *p != '"'; p++)
	{
		if (*p == '\\')
			p++;
		if (*p == '\0')
			return NULL;
		appendStringInfoChar(&key, *p);
	}
	p++;
	p += strspn(p, " \t");
	return *p == '\0' || *p == ';' ? key.data : NULL;
}

/*
 * Clients of one role share its keys, so what tells them and their operations
 * apart goes into the scope: the subject as JSON, which shows where it ends and
 * differs for 42 and "42"; the method, which has no blank in it (RFC 9110); and
 * the rest is the path.
 */
static char *
http_request_scope(void)
{
	char	   *method = http_get("request.method");
	char	   *path = http_get("request.path");
	Jsonb	   *claims = http_get_json("request.jwt.claims");
	JsonbValue *subject = http_member(claims, "sub");
	StringInfoData scope;

	initStringInfo(&scope);
	if (subject != NULL)
	{
		Jsonb	   *value = JsonbValueToJsonb(subject);

		(void) JsonbToCString(&scope, &value->root, VARSIZE(value) - VARHDRSZ);
	}
	if (method != NULL || path != NULL)
		appendStringInfo(&scope, " %s %s", method != NULL ? method : "",
						 path != NULL ? path : "");
	if (scope.len > IDEM_MAX_SCOPE_LEN)
		return http_digest(&scope);
	return scope.data;
}

/* What is too long stands for itself by its SHA-256. */
static char *
http_digest(const StringInfoData *value)
{
	text	   *data = cstring_to_text_with_len(value->data, value->len);
	Datum		digest = DirectFunctionCall1(sha256_bytea, PointerGetDatum(data));
	Datum		hex = DirectFunctionCall2(binary_encode, digest,
										  CStringGetTextDatum("hex"));

	return psprintf("sha256:%s", TextDatumGetCString(hex));
}

static Jsonb *
http_params_as_request(const ArgsArray *params)
{
	JsonbParseState *state = NULL;

	(void) pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < params->n; i++)
	{
		JsonbValue	element = {.type = jbvNull};

		if (!params->isnull[i])
			element = http_string(TextDatumGetCString(params->values[i]));
		(void) pushJsonbValue(&state, WJB_ELEM, &element);
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL));
}

/* ----------------------------------------------------------------
 *						The response
 * ----------------------------------------------------------------
 */

/* What is stored for a repeat. */
static Jsonb *
http_envelope(Jsonb *body)
{
	char	   *status = http_get("response.status");
	Jsonb	   *headers = http_get_json("response.headers");
	JsonbParseState *state = NULL;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	http_push(&state, HTTP_ENVELOPE, http_number(1));
	http_push(&state, "body", answer_jsonb_value(body));
	if (status != NULL)
		http_push(&state, "status", http_string(status));
	if (headers != NULL)
		http_push(&state, "headers", answer_jsonb_value(headers));
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/* The body that an outcome comes down to; status and headers are set. */
static Jsonb *
http_answer(const ClaimAnswer *answer)
{
	switch (answer->outcome)
	{
		case CLAIM_CLAIMED:
			return http_body(answer->response);

		case CLAIM_REPLAYED:
			http_restore(answer->response);
			http_add_header("Idempotency-Replayed", "true");
			return http_body(answer->response);

		case CLAIM_IN_PROGRESS:
			http_add_header("Retry-After", http_seconds_until(answer->retry_at));
			return http_problem(409, "The first request with this Idempotency-Key is still being processed",
								"Repeat the request later, with the same key.");

		case CLAIM_MISMATCH:
			return http_problem(422, "Idempotency-Key is already used",
								"The key was used before with another request. Use a new key for a new operation.");

		case CLAIM_RETRY_LATER:
			http_add_header("Retry-After", http_seconds_until(answer->retry_at));
			return http_problem(503, "The operation has failed for now",
								"Repeat the request later, with the same key.");

		case CLAIM_HELD:
			return http_problem(409, "The outcome of the first request is not known",
								"It has to be settled by the operator of this service before the operation can be repeated.");

		case CLAIM_FAILED:
			break;
	}

	if (answer->response == NULL)
		return http_problem(500, "The operation has failed",
							"It will not be tried again under this key.");
	http_set("response.status",
			 psprintf("%d", http_stored_status(answer->response)));
	http_add_header("Idempotency-Replayed", "true");
	return answer->response;
}

/* The body of what is stored; the whole of it if it is no envelope. */
static Jsonb *
http_body(Jsonb *stored)
{
	JsonbValue *body = http_member(stored, "body");

	if (body == NULL || http_member(stored, HTTP_ENVELOPE) == NULL)
		return stored;
	return JsonbValueToJsonb(body);
}

/* Status and headers as they were when the command had run. */
static void
http_restore(Jsonb *stored)
{
	JsonbValue *status = http_member(stored, "status");
	JsonbValue *headers = http_member(stored, "headers");

	if (http_member(stored, HTTP_ENVELOPE) == NULL)
		return;
	if (status != NULL && status->type == jbvString)
		http_set("response.status", pnstrdup(status->val.string.val,
											 status->val.string.len));
	if (headers != NULL && headers->type == jbvBinary)
		http_set("response.headers",
				 JsonbToCString(NULL, headers->val.binary.data,
								headers->val.binary.len));
}

/* Seconds from now, rounded up; nobody knows when a transaction will end (0). */
static const char *
http_seconds_until(TimestampTz until)
{
	int64		usecs = until == 0 ? 0 : until - GetCurrentTimestamp();

	return psprintf(INT64_FORMAT,
					Max(1, (usecs + USECS_PER_SEC - 1) / USECS_PER_SEC));
}

/* Problem details as the body, and the status. */
static Jsonb *
http_problem(int status, const char *title, const char *detail)
{
	JsonbParseState *state = NULL;

	http_set("response.status", psprintf("%d", status));
	http_add_header("Content-Type", "application/problem+json");

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	http_push(&state, "title", http_string(title));
	http_push(&state, "detail", http_string(detail));
	http_push(&state, "status", http_number(status));
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/* The "status" of a stored error, if it is that of an error; else 500. */
static int
http_stored_status(Jsonb *error)
{
	JsonbValue *status = http_member(error, "status");
	bool		failed = true;
	int32		number = 0;

	if (status != NULL && status->type == jbvNumeric)
		number = numeric_int4_opt_error(status->val.numeric, &failed);
	return failed || number < 400 || number > 599 ? 500 : number;
}

/* ----------------------------------------------------------------
 *						Settings and JSON
 * ----------------------------------------------------------------
 */

/* The value of a setting, or NULL if there is none or it is empty. */
static char *
http_get(const char *setting)
{
	const bool	missing_ok = true;
	const bool	restrict_privileged = false;
	const char *value = GetConfigOption(setting, missing_ok, restrict_privileged);

	return value == NULL || value[0] == '\0' ? NULL : pstrdup(value);
}

static Jsonb *
http_get_json(const char *setting)
{
	char	   *value = http_get(setting);

	return value == NULL ? NULL :
		DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(value)));
}

/* Until the end of the transaction. */
static void
http_set(const char *setting, const char *value)
{
	const bool	change = true;
	const int	default_elevel = 0;
	const bool	is_reload = false;

	(void) set_config_option(setting, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, change, default_elevel, is_reload);
}

/* One more in response.headers, an array of objects with one member each. */
static void
http_add_header(const char *name, const char *value)
{
	Jsonb	   *headers = http_get_json("response.headers");
	JsonbParseState *state = NULL;
	Jsonb	   *added;

	(void) pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	if (headers != NULL && JB_ROOT_IS_ARRAY(headers))
	{
		JsonbIterator *it = JsonbIteratorInit(&headers->root);
		const bool	skip_nested = true;
		JsonbIteratorToken token;
		JsonbValue	element;

		while ((token = JsonbIteratorNext(&it, &element, skip_nested)) != WJB_DONE)
			if (token == WJB_ELEM)
				(void) pushJsonbValue(&state, WJB_ELEM, &element);
	}
	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	http_push(&state, name, http_string(value));
	(void) pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	added = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL));
	http_set("response.headers", JsonbToCString(NULL, &added->root,
												VARSIZE(added) - VARHDRSZ));
}

/* A member of an object, or NULL if there is no such one. */
static JsonbValue *
http_member(Jsonb *object, const char *name)
{
	JsonbValue	key = http_string(name);

	if (object == NULL || !JB_ROOT_IS_OBJECT(object))
		return NULL;
	return findJsonbValueFromContainer(&object->root, JB_FOBJECT, &key);
}

static JsonbValue
http_string(const char *value)
{
	JsonbValue	result = {.type = jbvString};

	result.val.string.val = pstrdup(value);
	result.val.string.len = strlen(value);
	return result;
}

static JsonbValue
http_number(int value)
{
	JsonbValue	result = {.type = jbvNumeric};

	result.val.numeric = int64_to_numeric(value);
	return result;
}

static void
http_push(JsonbParseState **state, const char *name, JsonbValue value)
{
	JsonbValue	key = http_string(name);

	(void) pushJsonbValue(state, WJB_KEY, &key);
	(void) pushJsonbValue(state, WJB_VALUE, &value);
}
