/*-------------------------------------------------------------------------
 *
 * args.c
 *	  What callers of the SQL functions pass, checked.
 *
 * The functions are not STRICT: a NULL has a meaning or deserves an error.
 * Every check is made before anything is locked or written.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/xact.h"
#include "common/int.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "args.h"
#include "compat.h"

int			args_default_ttl = SECS_PER_DAY;
int			args_failed_ttl = SECS_PER_DAY;
int			args_abandoned_ttl = 7 * SECS_PER_DAY;
int			args_max_response_size = 8 * 1024;

/* No record is kept, and no lease lasts, for less. */
#define ARGS_MIN_SPAN_USEC	1000

/* Standby, read-only transactions, parallel workers: 25006, 25006, 25000. */
void
args_may_write(const char *function)
{
	PreventCommandDuringRecovery(function);
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
}

void
args_key(IdemKey *key, FunctionCallInfo fcinfo, int key_arg, int scope_arg)
{
	key_make(key,
			 PG_ARGISNULL(key_arg) ? NULL : PG_GETARG_TEXT_PP(key_arg),
			 PG_ARGISNULL(scope_arg) ? NULL : PG_GETARG_TEXT_PP(scope_arg));
}

/* False for NULL, which leaves it to the settings. */
bool
args_ttl(Interval *ttl, FunctionCallInfo fcinfo, int arg)
{
	TimestampTz now;

	if (PG_ARGISNULL(arg))
		return false;

	*ttl = *PG_GETARG_INTERVAL_P(arg);
	if (INTERVAL_NOT_FINITE(ttl))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ttl must be finite"),
				 errhint("Use an interval such as '100 years' to keep a record for good.")));
	now = GetCurrentTimestamp();
	if (args_add(now, ttl) < now + ARGS_MIN_SPAN_USEC)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ttl must be at least 1 millisecond"),
				 errhint("Use null for the default, setting \"idempotency.default_ttl\".")));
	return true;
}

void
args_wait(IdemWait *wait, FunctionCallInfo fcinfo, int arg)
{
	const Interval *given;
	TimestampTz now;
	int64		usecs;

	if (PG_ARGISNULL(arg))
	{
		wait->mode = IDEM_WAIT_FOREVER;
		return;
	}

	given = PG_GETARG_INTERVAL_P(arg);
	if (INTERVAL_NOT_FINITE(given))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("wait must be finite"),
				 errhint("Use null to wait until the other transaction ends.")));
	now = GetCurrentTimestamp();
	usecs = args_add(now, given) - now;
	if (usecs < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("wait must not be negative"),
				 errhint("Use '0' not to wait at all, or null to wait until the other transaction ends.")));
	lock_wait_at_most(wait, usecs);
}

/* How long a lease is to be; it begins when it is taken, which may be later. */
void
args_lease(Interval *lease, FunctionCallInfo fcinfo, int arg)
{
	TimestampTz now;

	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("lease must not be null"),
				 errhint("Use an interval such as '30 seconds'.")));
	*lease = *PG_GETARG_INTERVAL_P(arg);
	if (INTERVAL_NOT_FINITE(lease))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lease must be finite"),
				 errhint("Take a short lease, and extend it in time.")));
	now = GetCurrentTimestamp();
	if (args_add(now, lease) < now + ARGS_MIN_SPAN_USEC)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lease must be at least 1 millisecond"),
				 errhint("Use an interval such as '30 seconds'.")));
}

/* How long something is put off.  False for NULL. */
bool
args_delay(Interval *delay, FunctionCallInfo fcinfo, int arg,
		   const char *name, const char *hint)
{
	TimestampTz now;

	if (PG_ARGISNULL(arg))
		return false;

	*delay = *PG_GETARG_INTERVAL_P(arg);
	now = GetCurrentTimestamp();
	if (INTERVAL_NOT_FINITE(delay) || args_add(now, delay) < now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be finite and not negative", name),
				 errhint("%s", hint)));
	return true;
}

/* A number of attempts; 0 for no limit, "otherwise" for NULL. */
int32
args_max_attempts(FunctionCallInfo fcinfo, int arg, int32 otherwise)
{
	if (PG_ARGISNULL(arg))
		return otherwise;
	if (PG_GETARG_INT32(arg) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_attempts must not be negative"),
				 errhint("Use 0 for no limit.")));
	return PG_GETARG_INT32(arg);
}

bool
args_flag(FunctionCallInfo fcinfo, int arg, const char *name, const char *hint)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name),
				 errhint("%s", hint)));
	return PG_GETARG_BOOL(arg);
}

/* The name of something that exists because somebody uses it. */
const text *
args_name(FunctionCallInfo fcinfo, int arg, const char *what, const char *hint)
{
	const text *name = PG_ARGISNULL(arg) ? NULL : PG_GETARG_TEXT_PP(arg);

	if (name == NULL || VARSIZE_ANY_EXHDR(name) == 0)
		ereport(ERROR,
				(errcode(name == NULL ? ERRCODE_NULL_VALUE_NOT_ALLOWED :
						 ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be %s", what, name == NULL ? "null" : "empty"),
				 errhint("%s", hint)));
	if (VARSIZE_ANY_EXHDR(name) > ARGS_MAX_NAME_LEN)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s is too long", what),
				 errdetail("It has %d bytes, the limit is %d.",
						   (int) VARSIZE_ANY_EXHDR(name), ARGS_MAX_NAME_LEN),
				 errhint("%s", hint)));
	return name;
}

/* An array of one dimension, or an empty one. */
void
args_array(ArgsArray *array, Datum value, const char *name, Oid type)
{
	ArrayType  *given = DatumGetArrayTypeP(value);
	int16		len;
	bool		byval;
	char		align;

	if (ARR_NDIM(given) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("%s must be an array of one dimension", name),
				 errhint("Use array_agg(), or a literal such as '{a,b}'.")));
	get_typlenbyvalalign(type, &len, &byval, &align);
	deconstruct_array(given, type, len, byval, align,
					  &array->values, &array->isnull, &array->n);
}

/*
 * An array that has an element for each of so many others, or is NULL, and then empty;
 * "what" is what they are.
 */
void
args_array_for(ArgsArray *array, FunctionCallInfo fcinfo, int arg,
			   const char *name, Oid type, int n, const char *what,
			   const char *hint)
{
	array->n = 0;
	if (PG_ARGISNULL(arg))
		return;
	args_array(array, PG_GETARG_DATUM(arg), name, type);
	if (array->n != n)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("%s must have an element for each %s", name, what),
				 errdetail("The number of %ss is %d, that of elements %d.",
						   what, n, array->n),
				 errhint("%s", hint)));
}

/* A token, or 0 for NULL.  No lease has a token below 1. */
int64
args_token(bool isnull, Datum value)
{
	if (isnull)
		return 0;
	return DatumGetInt64(value) == 0 ? -1 : DatumGetInt64(value);
}

/* Is a jsonb value larger than what may be stored?  It need not be detoasted yet. */
static bool
args_too_large(Datum value, Size *size, Size *limit)
{
	*size = toast_raw_datum_size(value) - VARHDRSZ;
	*limit = (Size) args_max_response_size * 1024;
	return *size > *limit;
}

/* A jsonb value to be stored under a key; NULL for SQL NULL. */
Jsonb *
args_response(const IdemKey *key, const char *what, bool isnull, Datum value)
{
	Size		size;
	Size		limit;

	if (isnull)
		return NULL;
	if (args_too_large(value, &size, &limit))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s of key \"%s\" is too large", what, key_name(key)),
				 errdetail("It has %zu bytes, the limit is %zu.", size, limit),
				 errhint("Store the data elsewhere and a reference to it here, or raise \"idempotency.max_response_size\".")));
	return DatumGetJsonbP(value);
}

/* One to be stored in a message. */
Jsonb *
args_content(const char *what, bool isnull, Datum value)
{
	Size		size;
	Size		limit;

	if (isnull)
		return NULL;
	if (args_too_large(value, &size, &limit))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s of the message is too large", what),
				 errdetail("It has %zu bytes, the limit is %zu.", size, limit),
				 errhint("Store the data elsewhere and a reference to it here, or raise \"idempotency.max_response_size\".")));
	return DatumGetJsonbP(value);
}

/* When a record expires; "ttl" NULL leaves it to the settings. */
TimestampTz
args_expiry(TimestampTz from, const Interval *ttl, IdemRetention retention)
{
	int			seconds = 0;

	if (ttl != NULL)
		return args_add(from, ttl);

	switch (retention)
	{
		case ARGS_FINISHED:
			seconds = args_default_ttl;
			break;
		case ARGS_FAILED:
			seconds = args_failed_ttl;
			break;
		case ARGS_ABANDONED:
			seconds = args_abandoned_ttl;
			break;
	}
	return args_later(from, seconds * USECS_PER_SEC);
}

/* A time so many microseconds later.  Raises 22008 out of range. */
TimestampTz
args_later(TimestampTz from, int64 usecs)
{
	TimestampTz result;

	if (pg_add_s64_overflow(from, usecs, &result) || !IS_VALID_TIMESTAMP(result))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp out of range")));
	return result;
}

/*
 * As "timestamptz + interval" does it: months and days go by the calendar of
 * the session's time zone.  Raises 22008 out of range.
 */
TimestampTz
args_add(TimestampTz from, const Interval *span)
{
	if (span->month == 0 && span->day == 0 &&
		span->time >= 0 && span->time < INT64CONST(100000) * USECS_PER_DAY)
		return from + span->time;
	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(from),
												   IntervalPGetDatum(span)));
}
