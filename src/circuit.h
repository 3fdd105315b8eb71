/*-------------------------------------------------------------------------
 *
 * circuit.h
 *	  The state of a circuit breaker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_CIRCUIT_H
#define IDEM_CIRCUIT_H

#include "postgres.h"

/* Limits: what is counted is of a fixed size. */
#define CIRCUIT_BUCKETS			10
#define CIRCUIT_MAX_PROBES		32
#define CIRCUIT_MAX_CLIENTS		16

/* How a breaker is configured; times in microseconds, rates in percent. */
typedef struct CircuitRules
{
	double		failure_rate;
	int32		minimum_calls;
	int64		window_length;
	int64		open_for;
	int32		half_open_probes;
	int64		slow_call;		/* PG_INT64_MAX: no call is slow */
	double		slow_rate;
	int32		quorum;
} CircuitRules;

typedef enum CircuitState
{
	CIRCUIT_CLOSED,				/* all calls are allowed, and counted */
	CIRCUIT_OPEN,				/* none are */
	CIRCUIT_HALF_OPEN			/* some are, to try */
} CircuitState;

typedef enum CircuitForce
{
	CIRCUIT_AUTO,
	CIRCUIT_FORCED_CLOSED,
	CIRCUIT_FORCED_OPEN
} CircuitForce;

/* What was counted in a tenth of the window. */
typedef struct CircuitBucket
{
	int64		epoch;			/* which tenth since the clock began */
	int64		calls;
	int64		failures;
	int64		slow;
} CircuitBucket;

typedef struct CircuitClient
{
	uint64		client;			/* 0: none */
	int64		failed_at;
} CircuitClient;

typedef struct Circuit
{
	CircuitState state;
	CircuitForce force;
	int64		open_until;		/* if open */
	int64		window_length;	/* for which the buckets were filled */
	CircuitBucket buckets[CIRCUIT_BUCKETS];
	CircuitClient clients[CIRCUIT_MAX_CLIENTS];

	/* if half open: probes that were answered, and those that are out */
	CircuitBucket answered;
	int			nprobes;
	int64		probes[CIRCUIT_MAX_PROBES]; /* until when they are waited for */
} Circuit;

/* What is seen of it. */
typedef struct CircuitSight
{
	CircuitState state;
	bool		forced;
	CircuitBucket counts;
	int			failing_clients;
	int			probes;
	int64		open_for;		/* from now; 0 if not open, or forced */
} CircuitSight;

extern bool circuit_allow(Circuit *circuit, const CircuitRules *rules,
						  int64 now);
extern void circuit_record(Circuit *circuit, const CircuitRules *rules,
						   int64 now, bool success, int64 duration,
						   uint64 client);
extern void circuit_see(Circuit *circuit, const CircuitRules *rules,
						int64 now, CircuitSight *sight);

#endif							/* IDEM_CIRCUIT_H */
