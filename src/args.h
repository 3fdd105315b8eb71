/*-------------------------------------------------------------------------
 *
 * args.h
 *	  What callers of the SQL functions pass, checked.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ARGS_H
#define IDEM_ARGS_H

#include "postgres.h"

#include "fmgr.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "key.h"
#include "lock.h"

/* What a record is kept as; each has a setting of its own. */
typedef enum IdemRetention
{
	ARGS_FINISHED,
	ARGS_FAILED,
	ARGS_ABANDONED				/* a lease that ran out */
} IdemRetention;

/* Bytes of a name of ours: as of any name in PostgreSQL. */
#define ARGS_MAX_NAME_LEN		63

/* Settings, see idempotency.c. */
extern int	args_default_ttl;	/* seconds */
extern int	args_failed_ttl;	/* seconds */
extern int	args_abandoned_ttl; /* seconds */
extern int	args_max_response_size; /* kilobytes */

/* An array; n is 0 if there is none. */
typedef struct ArgsArray
{
	Datum	   *values;
	bool	   *isnull;
	int			n;
} ArgsArray;

extern void args_may_write(const char *function);
extern void args_key(IdemKey *key, FunctionCallInfo fcinfo,
					 int key_arg, int scope_arg);
extern bool args_ttl(Interval *ttl, FunctionCallInfo fcinfo, int arg);
extern void args_wait(IdemWait *wait, FunctionCallInfo fcinfo, int arg);
extern void args_lease(Interval *lease, FunctionCallInfo fcinfo, int arg);
extern const text *args_name(FunctionCallInfo fcinfo, int arg,
							 const char *what, const char *hint);
extern void args_array(ArgsArray *array, Datum value, const char *name,
					   Oid type);
extern void args_array_for(ArgsArray *array, FunctionCallInfo fcinfo, int arg,
						   const char *name, Oid type, int n,
						   const char *what, const char *hint);
extern int64 args_token(bool isnull, Datum value);
extern Jsonb *args_response(const IdemKey *key, const char *what,
							bool isnull, Datum value);
extern Jsonb *args_content(const char *what, bool isnull, Datum value);
extern bool args_delay(Interval *delay, FunctionCallInfo fcinfo, int arg,
					   const char *name, const char *hint);
extern int32 args_max_attempts(FunctionCallInfo fcinfo, int arg,
							   int32 otherwise);
extern bool args_flag(FunctionCallInfo fcinfo, int arg, const char *name,
					  const char *hint);
extern TimestampTz args_expiry(TimestampTz from, const Interval *ttl,
							   IdemRetention retention);
extern TimestampTz args_later(TimestampTz from, int64 usecs);
extern TimestampTz args_add(TimestampTz from, const Interval *span);

#endif							/* IDEM_ARGS_H */
