/*-------------------------------------------------------------------------
 *
 * once.h
 *	  Run one statement once under a key.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ONCE_H
#define IDEM_ONCE_H

#include "postgres.h"

#include "args.h"
#include "claim.h"
#include "compat.h"

/* What becomes of the result of the statement before it is stored. */
typedef Jsonb *(*OnceResult) (Jsonb *result);

extern void once_init(void);
extern void once_run(const ClaimRequest *request, const text *command,
					 const ArgsArray *params, OnceResult result,
					 ClaimAnswer *answer);

#endif							/* IDEM_ONCE_H */
