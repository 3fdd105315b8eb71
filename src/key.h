/*-------------------------------------------------------------------------
 *
 * key.h
 *	  The identity of a key: limits, hash, ID, fingerprint of a request.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_H
#define IDEM_KEY_H

#include "postgres.h"

#include "common/sha2.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

/* Limits, in bytes of the server encoding: part of the contract. */
#define IDEM_MAX_KEY_LEN		512
#define IDEM_MAX_SCOPE_LEN		128
#define IDEM_MAX_STEP_LEN		128

#define IDEM_FINGERPRINT_LEN	PG_SHA256_DIGEST_LENGTH

/*
 * Which logical operation.  Two keys are the same if table, owner, scope and
 * key are; the hash and the ID are derived from them.  The strings are not
 * null-terminated and belong to whoever made the struct.
 */
typedef struct IdemKey
{
	Oid			table;			/* the installation's idem_key */
	Oid			owner;			/* the role that claims */
	uint64		hash;			/* names the key in the lock table */
	int			scope_len;
	int			key_len;
	const char *scope;
	const char *key;
	bool		has_id;			/* the rest is filled in: see key_id() */
	bool		is_id;			/* the key is the ID as text, without a scope */
	pg_uuid_t	id;				/* names the key in the table, with the owner */
} IdemKey;

/* What a request comes down to; "given" is false for a NULL request. */
typedef struct IdemFingerprint
{
	bool		given;
	uint8		digest[IDEM_FINGERPRINT_LEN];
} IdemFingerprint;

extern void key_make(IdemKey *result, const text *key, const text *scope);
extern void key_make_of(IdemKey *result, Oid owner, const text *key,
						const text *scope);
extern uint64 key_hash(Oid owner, const text *scope, const text *key);
extern void key_derive(pg_uuid_t *result, const text *key, const text *step,
					   const text *scope, const uint8 *namespace);
extern void key_check_text(const char *what, const text *value, int max_len);
extern const pg_uuid_t *key_id(const IdemKey *key);
extern bool key_is_id(const IdemKey *key);
extern bool key_equal(const IdemKey *a, const IdemKey *b);
extern char *key_name(const IdemKey *key);
extern void key_fingerprint(IdemFingerprint *result, Jsonb *request);
extern bool key_fingerprints_differ(const IdemFingerprint *a,
									const IdemFingerprint *b);
extern void key_store_fingerprint(const IdemFingerprint *fingerprint,
								  Datum *value, bool *isnull);
extern void key_read_fingerprint(IdemFingerprint *fingerprint,
								 Datum value, bool isnull);

#endif							/* IDEM_KEY_H */
