/*-------------------------------------------------------------------------
 *
 * janitor.c
 *	  Removal of what has expired.
 *
 * Expiry is judged when a key is claimed or looked up; removal only gives the
 * space back and may come at any time later, or never.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"

#include "args.h"
#include "compat.h"
#include "letter.h"
#include "record.h"

PG_FUNCTION_INFO_V1(idem_expire);

/*
 * idem_expire(max_rows int) -> bigint
 *
 * Removes up to max_rows expired records and dead letters, those of the current user, or
 * anybody's if the current user is a member of the role that owns the
 * extension's tables.  Returns how many; fewer than max_rows means that none
 * are left, except those that others have locked.
 *
 * Waits for nobody, and nobody who claims a live key waits for it.  A claim
 * over an expired record that was removed waits for the commit, so commit
 * soon: call it by itself, in batches.
 *
 * Raises 22004, 22023 (max_rows), 25006.
 */
Datum
idem_expire(PG_FUNCTION_ARGS)
{
	int64		max_rows;
	int64		removed;

	args_may_write("idem_expire()");

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("max_rows must not be null"),
				 errhint("Leave the argument out for the default.")));
	if (PG_GETARG_INT32(0) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_rows must be greater than zero"),
				 errhint("Leave the argument out for the default.")));

	max_rows = PG_GETARG_INT32(0);

	record_open(true);
	removed = record_expire(max_rows);
	if (removed < max_rows)
		removed += letter_expire(max_rows - removed);
	PG_RETURN_INT64(removed);
}
