/*-------------------------------------------------------------------------
 *
 * breaker.h
 *	  Circuit breakers that all connections of a database share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BREAKER_H
#define IDEM_BREAKER_H

extern void breaker_init(void);

#endif							/* IDEM_BREAKER_H */
