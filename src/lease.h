/*-------------------------------------------------------------------------
 *
 * lease.h
 *	  Claims that outlive their transaction.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LEASE_H
#define IDEM_LEASE_H

#include "postgres.h"

#include "compat.h"
#include "pending.h"
#include "record.h"

/* What to make of a record while it is written anew. */
typedef void (*LeaseChange) (IdemRecord *record, void *arg);

extern int64 lease_new_token(void);
extern int64 lease_resolve_token(const IdemKey *key, int64 token);
extern PendingClaim *lease_whose_claim(const IdemKey *key, int64 *token);
extern void lease_find(const IdemKey *key, int64 token, IdemRecord *record);
extern bool lease_change(const IdemKey *key, int64 token, IdemRecord *record,
						 LeaseChange change, void *arg);
extern void lease_guard(const IdemKey *key, int64 token, IdemRecord *record);
extern void lease_delete(const IdemKey *key, int64 token);
pg_noreturn extern void lease_raise_finished(const IdemKey *key);
pg_noreturn extern void lease_raise_settled(const IdemKey *key,
											const IdemRecord *record);
extern const char *lease_state_name(const IdemRecord *record, TimestampTz now);

#endif							/* IDEM_LEASE_H */
