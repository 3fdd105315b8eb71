/*-------------------------------------------------------------------------
 *
 * errors.h
 *	  SQLSTATEs of our own.
 *
 * PostgreSQL's codes are used wherever one fits.  The class "ID" is for what
 * only an idempotency key can get wrong.  These codes are part of the
 * contract: applications branch on them, so none may ever change its meaning.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ERRORS_H
#define IDEM_ERRORS_H

#include "utils/elog.h"

/* not claimed by this transaction, and nothing finished either */
#define ERRCODE_IDEM_NOT_CLAIMED		MAKE_SQLSTATE('I','D','0','0','1')
/* finished already, by another claim or in an earlier transaction */
#define ERRCODE_IDEM_FINISHED			MAKE_SQLSTATE('I','D','0','0','2')
/* the lease is not ours any more: another token, resolved, released, forgotten */
#define ERRCODE_IDEM_STALE				MAKE_SQLSTATE('I','D','0','0','3')
/* the key is not held: there is nothing to resolve */
#define ERRCODE_IDEM_NOT_HELD			MAKE_SQLSTATE('I','D','0','0','4')
/* COMMIT or PREPARE with a claim neither finished nor released */
#define ERRCODE_IDEM_UNFINISHED			MAKE_SQLSTATE('I','D','0','0','5')
/* the step was done before with another request */
#define ERRCODE_IDEM_STEP_DIFFERS		MAKE_SQLSTATE('I','D','0','0','6')

#endif							/* IDEM_ERRORS_H */
