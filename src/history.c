/*-------------------------------------------------------------------------
 *
 * history.c
 *	  What has become of a message so far: a jsonb array, the oldest first.
 *
 *		{"at": "...", "attempt": 1, "error": ...}				it failed
 *		{"at": "...", "attempt": 2, "lease": "ran out"}			nobody has answered
 *		{"at": "...", "attempt": 10, "redriven_by": "role"}		it was dead
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "answer.h"
#include "history.h"

/* So many entries are kept, the latest ones. */
#define HISTORY_MAX_ENTRIES	20

static JsonbValue
history_string(const char *string)
{
	JsonbValue	value = {.type = jbvString};

	value.val.string.val = unconstify(char *, string);
	value.val.string.len = strlen(string);
	return value;
}

static void
history_push(JsonbParseState **state, const char *name, JsonbValue value)
{
	JsonbValue	key = history_string(name);

	pushJsonbValue(state, WJB_KEY, &key);
	pushJsonbValue(state, WJB_VALUE, &value);
}

/* A history with one entry more; NULL is one without any. */
static Jsonb *
history_add(Jsonb *history, int32 attempt, TimestampTz at,
			const char *what, JsonbValue detail)
{
	JsonbParseState *state = NULL;
	JsonbValue	number = {.type = jbvNumeric};
	char		time[MAXDATELEN + 1];
	Datum		entry;
	Datum		before;

	JsonEncodeDateTime(time, TimestampTzGetDatum(at), TIMESTAMPTZOID, NULL);
	number.val.numeric = int64_to_numeric(attempt);

	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	history_push(&state, "at", history_string(time));
	history_push(&state, "attempt", number);
	history_push(&state, what, detail);
	pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	entry = JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state,
															WJB_END_ARRAY,
															NULL)));
	if (history == NULL)
		return DatumGetJsonbP(entry);

	history = DatumGetJsonbP(JsonbPGetDatum(history));
	before = JsonbPGetDatum(history);
	if (JB_ROOT_COUNT(history) >= HISTORY_MAX_ENTRIES)
		before = DirectFunctionCall2(jsonb_delete_idx, before, Int32GetDatum(0));
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, before, entry));
}

Jsonb *
history_failed(Jsonb *history, int32 attempt, TimestampTz at, Jsonb *error)
{
	return history_add(history, attempt, at, "error", answer_jsonb_value(error));
}

Jsonb *
history_ran_out(Jsonb *history, int32 attempt, TimestampTz at)
{
	return history_add(history, attempt, at, "lease", history_string("ran out"));
}

Jsonb *
history_redriven(Jsonb *history, int32 attempt, TimestampTz at, Oid role)
{
	const bool	no_error = true;
	char	   *name = GetUserNameFromId(role, no_error);

	return history_add(history, attempt, at, "redriven_by",
					   history_string(name != NULL ? name : "?"));
}
