/*-------------------------------------------------------------------------
 *
 * backoff.c
 *	  How long to wait before the next attempt: pure arithmetic.
 *
 * With a = attempt, b = base, c = cap and random(x, y) uniform:
 *
 *		limit        = min(c, b * 2^(a - 1))
 *
 *		none         = limit
 *		full         = random(0, limit)
 *		equal        = limit / 2 + random(0, limit / 2)
 *		decorrelated = d(a), where d(1) = b and
 *					   d(i) = min(c, random(b, 3 * d(i - 1)))
 *
 * These are the four of Marc Brooker, "Exponential Backoff And Jitter", AWS
 * Architecture Blog, 2015, with attempts counted from 1.  The article draws
 * each decorrelated delay from the one before it.  We do not remember it, and
 * draw the whole sequence anew, which has the same distribution.
 *
 * All times are in microseconds.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "common/int.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "backoff.h"
#include "compat.h"

/*
 * After so many steps the decorrelated sequence has forgotten where it began:
 * it grows by e^0.098 a step on the average (the mean of ln(3u) for uniform u
 * is ln 3 - 1), so 1000 steps lead from a microsecond past any cap.
 */
#define BACKOFF_MAX_STEPS	1000

int			backoff_max_attempts = 10;
int			backoff_base = 1000;
int			backoff_cap = 60 * 60 * 1000;

PG_FUNCTION_INFO_V1(idem_backoff);

static int64 backoff_between(int64 low, int64 high);

/*
 * The delay before the next attempt, after "attempt" of them.
 *
 * 0 < base <= cap is the caller's duty.
 */
int64
backoff_delay(int32 attempt, int64 base, int64 cap, IdemJitter jitter)
{
	int64		limit = base;
	int			steps = Min(attempt - 1, BACKOFF_MAX_STEPS);

	if (jitter == IDEM_JITTER_DECORRELATED)
	{
		for (int i = 0; i < steps; i++)
		{
			int64		high = limit > PG_INT64_MAX / 3 ? PG_INT64_MAX : 3 * limit;

			limit = backoff_between(base, high);
			limit = Min(limit, cap);
		}
		return limit;
	}

	for (int i = 0; i < steps && limit < cap; i++)
		limit = limit > cap / 2 ? cap : 2 * limit;

	switch (jitter)
	{
		case IDEM_JITTER_NONE:
			return limit;
		case IDEM_JITTER_FULL:
			return backoff_between(0, limit);
		case IDEM_JITTER_EQUAL:
			return limit - backoff_between(0, limit / 2);
		case IDEM_JITTER_DECORRELATED:
			break;
	}
	pg_unreachable();
}

/* The settings in microseconds; the cap is not less than the base. */
int64
backoff_setting_base(void)
{
	return backoff_base * INT64CONST(1000);
}

int64
backoff_setting_cap(void)
{
	return Max(backoff_base, backoff_cap) * INT64CONST(1000);
}

/*
 * Uniformly distributed, both ends included.  By SQL's random(), so setseed()
 * makes it repeatable.
 */
static int64
backoff_between(int64 low, int64 high)
{
	LOCAL_FCINFO(fcinfo, 0);
	double		random;
	double		offset;

	InitFunctionCallInfoData(*fcinfo, NULL, 0, InvalidOid, NULL, NULL);
	random = DatumGetFloat8(drandom(fcinfo));

	/* in floating point, where neither the sum nor the product overflows */
	offset = floor(random * ((double) (high - low) + 1.0));
	if (offset >= (double) (high - low))
		return high;
	return low + (int64) offset;
}

/*
 * idem_backoff(attempt int, base interval, cap interval, jitter text)
 *		-> interval
 *
 * How long to wait before the next attempt, after the given number of them.
 *
 *	attempt		from 1
 *	base		the delay after the first attempt, without jitter; positive
 *	cap			no delay is longer; not less than base
 *	jitter		none, full, equal or decorrelated; formulas above
 *
 * A month counts as 30 days, a day as 24 hours.  Uses random(): repeatable after
 * setseed().  Raises 22004 for a null, 22023 for what is out of range or
 * unknown, 22008 for an interval that microseconds cannot count.
 */
Datum
idem_backoff(PG_FUNCTION_ARGS)
{
	int64		base;
	int64		cap;
	IdemJitter	jitter;
	Interval   *result;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("attempt must not be null"),
				 errhint("Attempts are counted from 1.")));
	if (PG_GETARG_INT32(0) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("attempt must be at least 1"),
				 errhint("Attempts are counted from 1.")));
	base = backoff_usecs("base", PG_ARGISNULL(1) ? NULL : PG_GETARG_INTERVAL_P(1));
	cap = backoff_usecs("cap", PG_ARGISNULL(2) ? NULL : PG_GETARG_INTERVAL_P(2));
	if (cap < base)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cap must not be less than base"),
				 errhint("The base is the first delay, the cap the longest.")));
	jitter = backoff_jitter(PG_ARGISNULL(3) ? NULL :
							text_to_cstring(PG_GETARG_TEXT_PP(3)));

	result = palloc0(sizeof(Interval));
	result->time = backoff_delay(PG_GETARG_INT32(0), base, cap, jitter);
	PG_RETURN_INTERVAL_P(result);
}

/* An interval as a number of microseconds, which is positive. */
int64
backoff_usecs(const char *what, const Interval *given)
{
	int64		days;
	int64		usecs;

	if (given == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what),
				 errhint("Use a positive interval such as '1 second'.")));
	if (INTERVAL_NOT_FINITE(given))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be finite", what),
				 errhint("Use a positive interval such as '1 second'.")));

	days = given->month * INT64CONST(30) + given->day;
	if (pg_mul_s64_overflow(days, USECS_PER_DAY, &usecs) ||
		pg_add_s64_overflow(usecs, given->time, &usecs))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("%s is out of range", what),
				 errhint("Use a positive interval such as '1 second'.")));
	if (usecs <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be positive", what),
				 errhint("Use a positive interval such as '1 second'.")));
	return usecs;
}

IdemJitter
backoff_jitter(const char *name)
{
	static const char *const names[] =
	{
		[IDEM_JITTER_NONE] = "none",
		[IDEM_JITTER_FULL] = "full",
		[IDEM_JITTER_EQUAL] = "equal",
		[IDEM_JITTER_DECORRELATED] = "decorrelated"
	};

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("jitter must not be null"),
				 errhint("Valid values are none, full, equal and decorrelated.")));
	for (int i = 0; i < (int) lengthof(names); i++)
		if (strcmp(name, names[i]) == 0)
			return (IdemJitter) i;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("jitter \"%s\" is not known", name),
			 errhint("Valid values are none, full, equal and decorrelated.")));
}
