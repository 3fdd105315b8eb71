/*-------------------------------------------------------------------------
 *
 * record.h
 *	  The managed table, idem_key.
 *
 * Nothing outside record.c knows that it is a local heap.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RECORD_H
#define IDEM_RECORD_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "compat.h"
#include "key.h"
#include "store.h"

/* Names one version of one record; opaque to others. */
typedef struct IdemVersion
{
	StoreVersion row;
	int64		generation;		/* whose steps go with it, see memo.h */
} IdemVersion;

/* Values of column state. */
typedef enum IdemState
{
	IDEM_IN_PROGRESS = 'p',		/* leased, or written ahead of the finish */
	IDEM_FINISHED = 'f',
	IDEM_RETRY = 'r',			/* failed, may be claimed again at retry_at */
	IDEM_FAILED = 'x'			/* failed for good */
} IdemState;

/* Values of column takeover: what to do when a lease has run out. */
typedef enum IdemTakeover
{
	IDEM_RERUN = 'r',			/* whoever comes next does the work again */
	IDEM_FAIL = 'f',			/* nobody does */
	IDEM_HOLD = 'h'				/* nobody does until it is resolved */
} IdemTakeover;

/* The part of a record that leased claims have. */
typedef struct IdemLease
{
	int64		token;			/* 0: this record has no lease */
	TimestampTz until;
	IdemTakeover takeover;
	bool		has_ttl;		/* else the settings decide */
	Interval	ttl;
	char	   *holder;			/* NULL for none */
} IdemLease;

/* What is stored under a key. */
typedef struct IdemRecord
{
	IdemVersion version;		/* set by reading, ignored by writing */
	bool		ours;			/* likewise: written by this transaction */
	IdemState	state;
	int32		attempt;
	int64		generation;		/* 0: no steps in this life of the key */
	TimestampTz claimed_at;
	TimestampTz finished_at;	/* unless in progress */
	TimestampTz expires_at;
	TimestampTz retry_at;		/* in state IDEM_RETRY */
	IdemLease	lease;
	IdemFingerprint fingerprint;
	Jsonb	   *response;		/* NULL for none; owned by the reader */
} IdemRecord;

/* A record to be inserted under a key that has none. */
typedef struct IdemInsert
{
	const IdemKey *key;
	IdemRecord	record;
	bool	   *duplicate;		/* set if there was one nevertheless */
	IdemVersion version;		/* what was written */
} IdemInsert;

/* What a claim sees when it looks at a key: see record_look(). */
typedef struct IdemLook
{
	bool		found;			/* there is a record, in "record" */
	IdemRecord	record;
	bool		changed;		/* it changed under our transaction snapshot */
	TransactionId rival;		/* who is changing it right now, or invalid */
} IdemLook;

/* A way from keys to records, for many looks; opaque to others. */
typedef struct RecordScan RecordScan;

extern void record_open(bool for_writing);
extern bool record_table_exists(Oid table);
pg_noreturn extern void record_raise_changed(const IdemKey *key);
extern RecordScan *record_begin_looks(Oid table, bool for_writing);
extern void record_end_looks(RecordScan *scan);
extern void record_look(RecordScan *scan, const IdemKey *key, IdemLook *look);
extern void record_look_twice(const IdemKey *key, IdemLook *look);
extern bool record_read(const IdemKey *key, IdemRecord *record);
extern bool record_is_live(const IdemRecord *record, TimestampTz now);
extern void record_insert(IdemInsert *inserts, int n);
extern bool record_try_insert(const IdemKey *key, const IdemRecord *record,
							  IdemVersion *version);
extern StoreResult record_replace(const IdemKey *key,
								  const IdemVersion *version,
								  const IdemRecord *record);
extern bool record_is_current(const IdemKey *key, const IdemVersion *version);
extern StoreResult record_pin(const IdemKey *key, const IdemVersion *version);
extern TransactionId record_locker(const IdemKey *key,
								   const IdemVersion *version);
extern StoreResult record_delete(const IdemKey *key,
								 const IdemVersion *version);
extern int64 record_expire(int64 max_rows);
extern int64 record_expire_part(BlockNumber *hand, BlockNumber max_blocks,
								BlockNumber max_changed, int64 max_rows,
								bool *end);
extern void record_visit_leases(void (*visit) (const IdemKey *key,
											   const IdemRecord *record,
											   void *arg),
								void *arg);

static inline void
record_no_version(IdemVersion *version)
{
	ItemPointerSetInvalid(&version->row.tid);
	version->generation = 0;
}

static inline bool
record_is_version(const IdemVersion *version)
{
	return ItemPointerIsValid(&version->row.tid);
}

static inline bool
record_same_version(const IdemVersion *a, const IdemVersion *b)
{
	return ItemPointerEquals(unconstify(ItemPointerData *, &a->row.tid),
							 unconstify(ItemPointerData *, &b->row.tid));
}

#endif							/* IDEM_RECORD_H */
