/*
 * Tells the analyser of gcc, which knows malloc() and free(), who allocates in
 * PostgreSQL, and that such memory is given back by pfree(): so it sees what is
 * used after that, or given back twice.
 */
#include "postgres.h"

#define ALLOCATES __attribute__((malloc, malloc(pfree, 1), returns_nonnull))

extern void *palloc(Size size) ALLOCATES;
extern void *palloc0(Size size) ALLOCATES;
extern void *MemoryContextAlloc(MemoryContext context, Size size) ALLOCATES;
extern void *MemoryContextAllocZero(MemoryContext context, Size size) ALLOCATES;
extern void *MemoryContextAllocHuge(MemoryContext context, Size size) ALLOCATES;
extern char *pstrdup(const char *in) ALLOCATES;
extern char *pnstrdup(const char *in, Size len) ALLOCATES;
extern char *psprintf(const char *fmt,...) ALLOCATES;
