/*-------------------------------------------------------------------------
 *
 * realm.h
 *	  One installation of the extension in the current database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_REALM_H
#define IDEM_REALM_H

#include "postgres.h"

#define IDEM_SECRET_LEN 16

typedef struct IdemRealm
{
	uint64		serial;			/* counts how often this was looked up */
	Oid			key_table;		/* idem_key, wherever it was installed */
	Oid			step_table;		/* idem_step */
	Oid			queue_table;	/* idem_queue */
	Oid			message_table;	/* idem_message */
	Oid			message_sequence;	/* idem_message_id */
	Oid			letter_table;	/* idem_dead_letter */
	Oid			breaker_table;	/* idem_breaker */
	uint8		secret[IDEM_SECRET_LEN];	/* seeds the hash of every key */
} IdemRealm;

extern void realm_init(void);
extern const IdemRealm *realm_get(void);
extern void realm_forget(void);

#endif							/* IDEM_REALM_H */
