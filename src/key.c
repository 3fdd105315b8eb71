/*-------------------------------------------------------------------------
 *
 * key.c
 *	  The identity of a key: limits, hash, ID, fingerprint of a request.
 *
 * A key is what (owner, scope, key) names in one installation.  Its hash is
 * the name under which it is locked, and everybody can read that name in
 * pg_locks.  Hence a keyed hash: SipHash-2-4 (Aumasson and Bernstein, "SipHash:
 * a fast short-input PRF", 2012) under the installation's secret.
 * hash_bytes_extended(), though seeded, can be inverted from a few known pairs;
 * HMAC-SHA-256 cannot, but takes about a microsecond, which is a noticeable
 * part of a claim.  A collision costs waiting, never correctness.
 *
 * The fingerprint tells whether two requests mean the same.  It is stored, so
 * its encoding may never change: see key_fingerprint().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/cryptohash.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"
#include "utils/uuid.h"

#include "compat.h"
#include "key.h"
#include "realm.h"

static void key_check(const text *key);
static void key_name_it(IdemKey *result, const text *key, const text *scope);
static bool key_read_uuid(pg_uuid_t *id, const char *data, int len);
static void key_hash_to_id(pg_uuid_t *id, const IdemKey *key);
static uint64 key_siphash(const uint8 *secret, const uint8 *data, size_t len);
static void key_append_bytes(StringInfo buf, char tag,
							 const char *data, int len);
static void key_append_string(StringInfo buf, const char *data, int len);
static void key_sha256(const StringInfoData *data, uint8 *digest);
static void key_sha256_uuid(pg_uuid_t *result, const StringInfoData *data);
static void key_append_utf8(StringInfo buf, const text *value);

PG_FUNCTION_INFO_V1(idem_key_id);
PG_FUNCTION_INFO_V1(idem_derive);

/*
 * The key that the current user means by (scope, key).
 *
 * The result points into the given texts.  NULL pointers stand for SQL NULL.
 * Raises 22004 for a NULL, 22023 for an empty key, 54000 past the limits.
 */
void
key_make(IdemKey *result, const text *key, const text *scope)
{
	key_make_of(result, GetUserId(), key, scope);
}

/* The key that somebody else means. */
void
key_make_of(IdemKey *result, Oid owner, const text *key, const text *scope)
{
	key_name_it(result, key, scope);
	result->table = realm_get()->key_table;
	result->owner = owner;
	result->hash = key_hash(owner, scope, key);
}

/* Under which name to lock something; scope and key are within the limits. */
uint64
key_hash(Oid owner, const text *scope, const text *key)
{
	uint8		buf[2 * sizeof(uint32) + IDEM_MAX_SCOPE_LEN + IDEM_MAX_KEY_LEN];
	uint8	   *p = buf;
	int			scope_len = VARSIZE_ANY_EXHDR(scope);
	int			key_len = VARSIZE_ANY_EXHDR(key);
	uint32		word;

	Assert(scope_len <= IDEM_MAX_SCOPE_LEN && key_len <= IDEM_MAX_KEY_LEN);

	/* owner and length of the scope make the encoding unambiguous */
	word = pg_hton32(owner);
	memcpy(p, &word, sizeof(word));
	p += sizeof(word);
	word = pg_hton32((uint32) scope_len);
	memcpy(p, &word, sizeof(word));
	p += sizeof(word);
	memcpy(p, VARDATA_ANY(scope), scope_len);
	p += scope_len;
	memcpy(p, VARDATA_ANY(key), key_len);
	p += key_len;

	return key_siphash(realm_get()->secret, buf, p - buf);
}

/* The part of a key that callers give. */
static void
key_name_it(IdemKey *result, const text *key, const text *scope)
{
	key_check(key);
	key_check_text("scope", scope, IDEM_MAX_SCOPE_LEN);

	result->scope = VARDATA_ANY(scope);
	result->scope_len = VARSIZE_ANY_EXHDR(scope);
	result->key = VARDATA_ANY(key);
	result->key_len = VARSIZE_ANY_EXHDR(key);
	result->has_id = false;
}

bool
key_equal(const IdemKey *a, const IdemKey *b)
{
	return a->hash == b->hash &&
		a->table == b->table &&
		a->owner == b->owner &&
		a->scope_len == b->scope_len &&
		a->key_len == b->key_len &&
		memcmp(a->scope, b->scope, a->scope_len) == 0 &&
		memcmp(a->key, b->key, a->key_len) == 0;
}

/*
 * The name of a key in the table, where (id, owner) is the primary key: 16 bytes
 * instead of some forty make the index half as large, and a step down the index
 * cheaper.
 *
 * A key without a scope that is a UUID in its usual form (lower case, 36
 * characters) is its own ID, so that keys that come in the order of time, as
 * UUIDs of version 7 do, lie side by side in the index.  Of all others the ID is a
 * UUID of version 8: the first 128 bits of the SHA-256 of scope and key, each
 * preceded by its length in four bytes, most significant first, with the bits of
 * version and variant set.  UUIDs of version 8 are hashed, too; so whoever may
 * choose a key can make the ID of another one only by breaking SHA-256.
 *
 * The bytes are those of the server's encoding, since not every text has a form
 * in UTF-8, nor one of its own: the conversions map some characters of EUC_TW to the
 * same one.
 *
 * IDs are stored, dumped and replicated: this may never change.
 */
const pg_uuid_t *
key_id(const IdemKey *key)
{
	/* computed when it is first asked for, which for many keys is never */
	IdemKey    *mutable = unconstify(IdemKey *, key);

	if (!key->has_id)
	{
		mutable->is_id = key->scope_len == 0 &&
			key_read_uuid(&mutable->id, key->key, key->key_len);
		if (!mutable->is_id)
			key_hash_to_id(&mutable->id, key);
		mutable->has_id = true;
	}
	return &key->id;
}

/* Is the key its own ID?  Then it need not be stored a second time. */
bool
key_is_id(const IdemKey *key)
{
	(void) key_id(key);
	return key->is_id;
}

/* A UUID in the form in which PostgreSQL writes it, but of no version 8. */
static bool
key_read_uuid(pg_uuid_t *id, const char *data, int len)
{
	const char *p = data;

	if (len != 2 * UUID_LEN + 4 || data[14] == '8')
		return false;

	for (int i = 0; i < UUID_LEN; i++)
	{
		int			byte = 0;

		if (i == 4 || i == 6 || i == 8 || i == 10)
			if (*p++ != '-')
				return false;
		for (int digit = 0; digit < 2; digit++, p++)
		{
			if (*p >= '0' && *p <= '9')
				byte = byte * 16 + (*p - '0');
			else if (*p >= 'a' && *p <= 'f')
				byte = byte * 16 + (*p - 'a' + 10);
			else
				return false;
		}
		id->data[i] = (unsigned char) byte;
	}
	return true;
}

static void
key_hash_to_id(pg_uuid_t *id, const IdemKey *key)
{
	StringInfoData buf;

	initStringInfo(&buf);
	key_append_string(&buf, key->scope, key->scope_len);
	key_append_string(&buf, key->key, key->key_len);
	key_sha256_uuid(id, &buf);
	pfree(buf.data);
}

/*
 * idem_key_id(key text, scope text) -> uuid
 *
 * The ID of a key, for those who write or look for rows of idem_key by hand; and
 * for the constraint that keeps such rows right.
 *
 * Raises 22004, 22023, 54000 for bad arguments.
 */
Datum
idem_key_id(PG_FUNCTION_ARGS)
{
	const text *key = PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0);
	const text *scope = PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1);
	pg_uuid_t  *result = palloc(sizeof(pg_uuid_t));
	IdemKey		named = {0};

	key_name_it(&named, key, scope);
	*result = *key_id(&named);
	PG_RETURN_UUID_P(result);
}

/* The key alone, null-terminated, for messages. */
char *
key_name(const IdemKey *key)
{
	return pnstrdup(key->key, key->key_len);
}

static void
key_check(const text *key)
{
	key_check_text("key", key, IDEM_MAX_KEY_LEN);
	if (VARSIZE_ANY_EXHDR(key) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key must not be empty"),
				 errhint("Use the identifier that the client sends with every retry of one operation.")));
}

/* Not NULL, and not too long. */
void
key_check_text(const char *what, const text *value, int max_len)
{
	int			len;

	if (value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what),
				 strcmp(what, "scope") == 0 ?
				 errhint("Use the empty string for keys without a scope.") :
				 strcmp(what, "step") == 0 ?
				 errhint("Use a name that this part of the flow has in every run.") :
				 errhint("Use the identifier that the client sends with every retry of one operation.")));

	len = VARSIZE_ANY_EXHDR(value);
	if (len > max_len)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s is too long", what),
				 errdetail("It has %d bytes, the limit is %d.", len, max_len),
				 errhint("Use a digest of the long value instead.")));
}

/* ----------------------------------------------------------------
 *						SipHash-2-4
 * ----------------------------------------------------------------
 */

#define SIP_ROUND(v0, v1, v2, v3) \
	do { \
		(v0) += (v1); (v1) = sip_rotate_left(v1, 13); (v1) ^= (v0); \
		(v0) = sip_rotate_left(v0, 32); \
		(v2) += (v3); (v3) = sip_rotate_left(v3, 16); (v3) ^= (v2); \
		(v0) += (v3); (v3) = sip_rotate_left(v3, 21); (v3) ^= (v0); \
		(v2) += (v1); (v1) = sip_rotate_left(v1, 17); (v1) ^= (v2); \
		(v2) = sip_rotate_left(v2, 32); \
	} while (0)

static inline uint64
sip_rotate_left(uint64 word, int n)
{
	return (word << n) | (word >> (64 - n));
}

/*
 * Words are read in native byte order: the hash never leaves the machine, and
 * no standby has another byte order.
 */
static uint64
key_siphash(const uint8 *secret, const uint8 *data, size_t len)
{
	uint64		k0,
				k1;
	uint64		v0,
				v1,
				v2,
				v3;
	uint64		word;
	size_t		i;

	memcpy(&k0, secret, sizeof(k0));
	memcpy(&k1, secret + sizeof(k0), sizeof(k1));

	v0 = k0 ^ UINT64CONST(0x736f6d6570736575);
	v1 = k1 ^ UINT64CONST(0x646f72616e646f6d);
	v2 = k0 ^ UINT64CONST(0x6c7967656e657261);
	v3 = k1 ^ UINT64CONST(0x7465646279746573);

	for (i = 0; i + sizeof(word) <= len; i += sizeof(word))
	{
		memcpy(&word, data + i, sizeof(word));
		v3 ^= word;
		SIP_ROUND(v0, v1, v2, v3);
		SIP_ROUND(v0, v1, v2, v3);
		v0 ^= word;
	}

	/* the rest, with the length in the top byte */
	word = ((uint64) len) << 56;
	for (int shift = 0; i < len; i++, shift += 8)
		word |= ((uint64) data[i]) << shift;
	v3 ^= word;
	SIP_ROUND(v0, v1, v2, v3);
	SIP_ROUND(v0, v1, v2, v3);
	v0 ^= word;

	v2 ^= 0xff;
	SIP_ROUND(v0, v1, v2, v3);
	SIP_ROUND(v0, v1, v2, v3);
	SIP_ROUND(v0, v1, v2, v3);
	SIP_ROUND(v0, v1, v2, v3);

	return v0 ^ v1 ^ v2 ^ v3;
}

/* ----------------------------------------------------------------
 *						Fingerprints
 * ----------------------------------------------------------------
 */

/*
 * SHA-256 of the canonical form of a request; NULL gives no fingerprint.
 *
 * Two requests have the same fingerprint exactly if they are equal as jsonb:
 * white space, the order of object keys, repeated keys and trailing zeros of
 * numbers do not matter.  jsonb has already sorted the object keys (by length,
 * then bytewise), and this order is fixed by its storage format.
 *
 * The canonical form is the sequence of the value's tokens, each a tag byte;
 * strings, object keys and numbers are followed by their length in four bytes,
 * most significant first, and their bytes.  Numbers are in the format of
 * numeric_send(), which writes 1e131071 in ten bytes, without trailing zeros.
 * Fingerprints are stored for as long as keys are: changing the canonical form
 * would turn retries into mismatches.
 */
void
key_fingerprint(IdemFingerprint *result, Jsonb *request)
{
	StringInfoData buf;
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	value;
	const bool	skip_nested = false;
	Datum		trimmed;
	bytea	   *number;

	result->given = request != NULL;
	if (request == NULL)
		return;

	initStringInfo(&buf);
	it = JsonbIteratorInit(&request->root);
	while ((token = JsonbIteratorNext(&it, &value, skip_nested)) != WJB_DONE)
	{
		CHECK_FOR_INTERRUPTS();

		switch (token)
		{
			case WJB_BEGIN_OBJECT:
				appendStringInfoChar(&buf, '{');
				continue;
			case WJB_END_OBJECT:
				appendStringInfoChar(&buf, '}');
				continue;
			case WJB_BEGIN_ARRAY:
				/* a scalar at the top is stored as an array that is none */
				appendStringInfoChar(&buf, value.val.array.rawScalar ? '<' : '[');
				continue;
			case WJB_END_ARRAY:
				appendStringInfoChar(&buf, ']');
				continue;
			case WJB_KEY:
				key_append_bytes(&buf, 'k',
								 value.val.string.val, value.val.string.len);
				continue;
			case WJB_VALUE:
			case WJB_ELEM:
				break;
			default:
				elog(ERROR, "unexpected jsonb token: %d", (int) token);
		}

		switch (value.type)
		{
			case jbvNull:
				appendStringInfoChar(&buf, 'n');
				break;
			case jbvBool:
				appendStringInfoChar(&buf, value.val.boolean ? 't' : 'f');
				break;
			case jbvString:
				key_append_bytes(&buf, 's',
								 value.val.string.val, value.val.string.len);
				break;
			case jbvNumeric:
				trimmed = DirectFunctionCall1(numeric_trim_scale,
											  NumericGetDatum(value.val.numeric));
				number = DatumGetByteaPP(DirectFunctionCall1(numeric_send, trimmed));
				key_append_bytes(&buf, 'd', VARDATA_ANY(number),
								 VARSIZE_ANY_EXHDR(number));
				break;
			default:
				elog(ERROR, "unexpected jsonb value type: %d", (int) value.type);
		}
	}

	key_sha256(&buf, result->digest);
	pfree(buf.data);
}

/* A request that was not given differs from none. */
bool
key_fingerprints_differ(const IdemFingerprint *a, const IdemFingerprint *b)
{
	return a->given && b->given &&
		memcmp(a->digest, b->digest, IDEM_FINGERPRINT_LEN) != 0;
}

/* As a column of type bytea. */
void
key_store_fingerprint(const IdemFingerprint *fingerprint,
					  Datum *value, bool *isnull)
{
	bytea	   *digest;

	*isnull = !fingerprint->given;
	if (!fingerprint->given)
		return;

	digest = palloc(VARHDRSZ + IDEM_FINGERPRINT_LEN);
	SET_VARSIZE(digest, VARHDRSZ + IDEM_FINGERPRINT_LEN);
	memcpy(VARDATA(digest), fingerprint->digest, IDEM_FINGERPRINT_LEN);
	*value = PointerGetDatum(digest);
}

void
key_read_fingerprint(IdemFingerprint *fingerprint, Datum value, bool isnull)
{
	bytea	   *digest;

	fingerprint->given = !isnull;
	if (isnull)
		return;

	digest = DatumGetByteaPP(value);
	if (VARSIZE_ANY_EXHDR(digest) != IDEM_FINGERPRINT_LEN)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("stored fingerprint has %d bytes instead of %d",
						(int) VARSIZE_ANY_EXHDR(digest),
						IDEM_FINGERPRINT_LEN)));
	memcpy(fingerprint->digest, VARDATA_ANY(digest), IDEM_FINGERPRINT_LEN);
}

static void
key_append_bytes(StringInfo buf, char tag, const char *data, int len)
{
	appendStringInfoChar(buf, tag);
	key_append_string(buf, data, len);
}

static void
key_append_string(StringInfo buf, const char *data, int len)
{
	uint32		word = pg_hton32((uint32) len);

	appendBinaryStringInfo(buf, (const char *) &word, sizeof(word));
	appendBinaryStringInfo(buf, data, len);
}

static void
key_sha256(const StringInfoData *data, uint8 *digest)
{
	pg_cryptohash_ctx *ctx;

	ctx = pg_cryptohash_create(PG_SHA256);
	if (ctx == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	if (pg_cryptohash_init(ctx) < 0 ||
		pg_cryptohash_update(ctx, (const uint8 *) data->data, data->len) < 0 ||
		pg_cryptohash_final(ctx, digest, PG_SHA256_DIGEST_LENGTH) < 0)
	{
		const char *reason = pg_cryptohash_error(ctx);

		pg_cryptohash_free(ctx);
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute %s hash: %s", "SHA256", reason)));
	}
	pg_cryptohash_free(ctx);
}

/* ----------------------------------------------------------------
 *						idem_derive
 * ----------------------------------------------------------------
 */

/*
 * The namespace of callers that have none: random, drawn once, fixed for ever.
 * f47ff103-c916-4f03-a0f7-ada3d7810fe9
 */
static const uint8 key_namespace[UUID_LEN] =
{
	0xf4, 0x7f, 0xf1, 0x03, 0xc9, 0x16, 0x4f, 0x03,
	0xa0, 0xf7, 0xad, 0xa3, 0xd7, 0x81, 0x0f, 0xe9
};

/*
 * idem_derive(key text, step text, scope text, namespace uuid) -> uuid
 *
 * The key to hand to the next system: always the same for the same arguments,
 * another one for any others.
 *
 *	step		names the request to that system; may be empty; up to 128 bytes
 *	namespace	keeps staging and production, or two owners, apart; NULL: the
 *				constant above
 *
 * A UUID of version 8 (RFC 9562, section 5.8): the first 128 bits of the SHA-256
 * of
 *
 *		the 16 bytes of the namespace,
 *		scope, key and step, each as the number of its bytes in UTF-8 (32 bits,
 *		most significant first) and these bytes,
 *
 * in which the four bits of the version are 1000 and the two of the variant are
 * 10.  This may never change: other systems remember what they were given.
 *
 * Raises 22004, 22023, 54000 for bad arguments.
 */
Datum
idem_derive(PG_FUNCTION_ARGS)
{
	const text *key = PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0);
	const text *step = PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1);
	const text *scope = PG_ARGISNULL(2) ? NULL : PG_GETARG_TEXT_PP(2);
	pg_uuid_t  *result = palloc(sizeof(pg_uuid_t));

	key_check(key);
	key_check_text("scope", scope, IDEM_MAX_SCOPE_LEN);
	key_check_text("step", step, IDEM_MAX_STEP_LEN);
	key_derive(result, key, step, scope,
			   PG_ARGISNULL(3) ? NULL : PG_GETARG_UUID_P(3)->data);
	PG_RETURN_UUID_P(result);
}

/* The same of arguments that are known to be right. */
void
key_derive(pg_uuid_t *result, const text *key, const text *step,
		   const text *scope, const uint8 *namespace)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (namespace == NULL)
		namespace = key_namespace;
	appendBinaryStringInfo(&buf, (const char *) namespace, UUID_LEN);
	key_append_utf8(&buf, scope);
	key_append_utf8(&buf, key);
	key_append_utf8(&buf, step);
	key_sha256_uuid(result, &buf);
	pfree(buf.data);
}

/* A UUID of version 8 (RFC 9562, section 5.8). */
static void
key_sha256_uuid(pg_uuid_t *result, const StringInfoData *data)
{
	uint8		digest[PG_SHA256_DIGEST_LENGTH];

	key_sha256(data, digest);
	memcpy(result->data, digest, UUID_LEN);
	result->data[6] = (result->data[6] & 0x0f) | 0x80;
	result->data[8] = (result->data[8] & 0x3f) | 0x80;
}

static void
key_append_utf8(StringInfo buf, const text *value)
{
	char	   *server = text_to_cstring(value);
	char	   *utf8 = pg_server_to_any(server, strlen(server), PG_UTF8);

	key_append_string(buf, utf8, strlen(utf8));
}
