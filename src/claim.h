/*-------------------------------------------------------------------------
 *
 * claim.h
 *	  Settings of the claim protocol.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_CLAIM_H
#define IDEM_CLAIM_H

extern int	claim_default_ttl;			/* seconds */
extern int	claim_max_response_size;	/* kilobytes */

#endif							/* IDEM_CLAIM_H */
