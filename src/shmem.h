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

#include "port/atomics.h"

typedef struct IdemShared
{
	/* For which queue each backend waits (see wake.c), 0 for none. */
	pg_atomic_uint32 nwaiting;
	pg_atomic_uint64 waiting[FLEXIBLE_ARRAY_MEMBER];
} IdemShared;

extern void shmem_init(void);
extern IdemShared *shmem_get(void);

#endif							/* IDEM_SHMEM_H */
