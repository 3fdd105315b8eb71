/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  Memory that all backends of a server share, where there is some.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SHMEM_H
#define IDEM_SHMEM_H

#include "postgres.h"

/* What a room keeps there.  Its size is asked for once MaxBackends is known. */
typedef struct ShmemPart
{
	Size		(*size) (void);
	void		(*fill) (void *place);
	Size		offset;			/* set by shmem.c */
} ShmemPart;

/* Has the server loaded the library at its start? */
extern bool shmem_preloaded;

extern void shmem_reserve(ShmemPart *part);
extern void shmem_init(void);
extern void *shmem_get(const ShmemPart *part);
extern const char *shmem_kind(void);

#endif							/* IDEM_SHMEM_H */
