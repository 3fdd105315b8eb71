/*-------------------------------------------------------------------------
 *
 * memo.h
 *	  The table of steps that are done, idem_step.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_MEMO_H
#define IDEM_MEMO_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/jsonb.h"

#include "compat.h"
#include "key.h"

/* One step that is done.  Read ones have a null-terminated name. */
typedef struct Memo
{
	const char *step;
	int			step_len;
	int32		attempt;		/* which attempt of the key did it */
	TimestampTz finished_at;
	IdemFingerprint fingerprint;
	Jsonb	   *result;			/* NULL for none; owned by the reader */
	bool		seen;			/* set by memo_look() */
} Memo;

extern bool memo_look(int64 generation, const char *step, int step_len,
					  Memo *memo);
extern void memo_write(int64 generation, const Memo *memo);
extern void memo_forget(int64 generation);
extern void memo_visit(int64 generation,
					   void (*visit) (const Memo *memo, void *arg), void *arg);

#endif							/* IDEM_MEMO_H */
