/*-------------------------------------------------------------------------
 *
 * circuit.c
 *	  The state of a circuit breaker: pure arithmetic on a struct of fixed size.
 *
 *		closed ---- too many calls of the window failed, or were slow ----> open
 *		   ^																^  |
 *		   |							 too many of the probes failed,		|  |
 *		   |							 or were slow						|  | open_for
 *		   |									+---------------------------+  |
 *		   |									|							   v
 *		   +---- enough of the probes went well ------------------------ half open
 *
 * The words are those of resilience4j (CircuitBreakerConfig: failureRateThreshold,
 * minimumNumberOfCalls, slidingWindowSize of type TIME_BASED,
 * waitDurationInOpenState, permittedNumberOfCallsInHalfOpenState,
 * slowCallDurationThreshold, slowCallRateThreshold).  Differences:
 *
 *	- The window moves on by tenths of its length.
 *	- In the open state nothing is counted: those are late answers.
 *	- A probe that is not answered within open_for is given to somebody else, so
 *	  that one who has died does not keep the breaker half open for ever.
 *	- quorum: it opens only if calls of so many clients have failed, or were slow, in
 *	  the window, so that one client that cannot reach the system does not cut off all
 *	  others.  Probes are not subject to that.
 *
 * The caller sees to it that nobody else touches the struct meanwhile, holding a
 * spinlock: nothing here allocates, raises or waits.  Times are microseconds of a
 * monotonic clock that all processes share.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "circuit.h"

static void circuit_become(Circuit *circuit, CircuitState state);
static CircuitState circuit_state(Circuit *circuit, int64 now);
static CircuitBucket *circuit_bucket(Circuit *circuit,
									 const CircuitRules *rules, int64 now);
static void circuit_sum(const Circuit *circuit, const CircuitRules *rules,
						int64 now, CircuitBucket *sum);
static void circuit_judge(Circuit *circuit, const CircuitRules *rules,
						  int64 now);
static void circuit_open(Circuit *circuit, const CircuitRules *rules,
						 int64 now);
static bool circuit_too_many(const CircuitBucket *counts,
							 const CircuitRules *rules);
static int	circuit_failing_clients(const Circuit *circuit,
									const CircuitRules *rules, int64 now);
static void circuit_note_client(Circuit *circuit, uint64 client, int64 now);
static void circuit_drop_probe(Circuit *circuit, int i);

/* May a call be made? */
bool
circuit_allow(Circuit *circuit, const CircuitRules *rules, int64 now)
{
	if (circuit->force != CIRCUIT_AUTO)
		return circuit->force == CIRCUIT_FORCED_CLOSED;

	switch (circuit_state(circuit, now))
	{
		case CIRCUIT_CLOSED:
			return true;
		case CIRCUIT_OPEN:
			return false;
		case CIRCUIT_HALF_OPEN:
			break;
	}

	/* so it may be if fewer probes are asked for than before */
	circuit_judge(circuit, rules, now);
	if (circuit->state != CIRCUIT_HALF_OPEN)
		return circuit->state == CIRCUIT_CLOSED;

	for (int i = circuit->nprobes - 1; i >= 0; i--)
		if (circuit->probes[i] <= now)
			circuit_drop_probe(circuit, i);
	if (circuit->answered.calls + circuit->nprobes >=
		Min(rules->half_open_probes, CIRCUIT_MAX_PROBES))
		return false;
	circuit->probes[circuit->nprobes++] = now + rules->open_for;
	return true;
}

/* A call went so. */
void
circuit_record(Circuit *circuit, const CircuitRules *rules, int64 now,
			   bool success, int64 duration, uint64 client)
{
	CircuitBucket *counts;
	CircuitBucket sum;

	switch (circuit_state(circuit, now))
	{
		case CIRCUIT_CLOSED:
			counts = circuit_bucket(circuit, rules, now);
			break;
		case CIRCUIT_HALF_OPEN:
			if (circuit->nprobes == 0)
				return;
			/* the one that has been out for the longest time */
			circuit_drop_probe(circuit, 0);
			counts = &circuit->answered;
			break;
		default:
			return;
	}

	counts->calls++;
	if (!success)
		counts->failures++;
	if (duration > rules->slow_call)
		counts->slow++;
	if (!success || duration > rules->slow_call)
		circuit_note_client(circuit, client, now);

	if (circuit->state == CIRCUIT_HALF_OPEN)
	{
		circuit_judge(circuit, rules, now);
		return;
	}
	circuit_sum(circuit, rules, now, &sum);
	if (sum.calls >= rules->minimum_calls &&
		circuit_too_many(&sum, rules) &&
		circuit_failing_clients(circuit, rules, now) >= rules->quorum)
		circuit_open(circuit, rules, now);
}

/* Half open: closed or open, if enough of the probes were answered. */
static void
circuit_judge(Circuit *circuit, const CircuitRules *rules, int64 now)
{
	if (circuit->answered.calls < Min(rules->half_open_probes, CIRCUIT_MAX_PROBES))
		return;
	if (circuit_too_many(&circuit->answered, rules))
		circuit_open(circuit, rules, now);
	else
		circuit_become(circuit, CIRCUIT_CLOSED);
}

static void
circuit_open(Circuit *circuit, const CircuitRules *rules, int64 now)
{
	circuit_become(circuit, CIRCUIT_OPEN);
	circuit->open_until = now + rules->open_for;
}

void
circuit_see(Circuit *circuit, const CircuitRules *rules, int64 now,
			CircuitSight *sight)
{
	sight->state = circuit_state(circuit, now);
	sight->forced = circuit->force != CIRCUIT_AUTO;
	sight->open_for = 0;
	if (sight->forced)
		sight->state = circuit->force == CIRCUIT_FORCED_OPEN ?
			CIRCUIT_OPEN : CIRCUIT_CLOSED;
	else if (sight->state == CIRCUIT_OPEN)
		sight->open_for = circuit->open_until - now;
	sight->probes = circuit->nprobes;
	sight->failing_clients = circuit_failing_clients(circuit, rules, now);
	if (circuit->state == CIRCUIT_HALF_OPEN)
		sight->counts = circuit->answered;
	else
		circuit_sum(circuit, rules, now, &sight->counts);
}

/* Into another state, with nothing counted yet. */
static void
circuit_become(Circuit *circuit, CircuitState state)
{
	CircuitForce force = circuit->force;

	memset(circuit, 0, sizeof(*circuit));
	circuit->force = force;
	circuit->state = state;
}

/* The state of now: being open ends by itself. */
static CircuitState
circuit_state(Circuit *circuit, int64 now)
{
	if (circuit->state == CIRCUIT_OPEN && circuit->open_until <= now)
		circuit_become(circuit, CIRCUIT_HALF_OPEN);
	return circuit->state;
}

/* Where to count what happens now. */
static CircuitBucket *
circuit_bucket(Circuit *circuit, const CircuitRules *rules, int64 now)
{
	int64		epoch = now / Max(rules->window_length / CIRCUIT_BUCKETS, 1);
	CircuitBucket *bucket = &circuit->buckets[epoch % CIRCUIT_BUCKETS];

	/* configured anew: what was counted is in another measure */
	if (circuit->window_length != rules->window_length)
	{
		memset(circuit->buckets, 0, sizeof(circuit->buckets));
		circuit->window_length = rules->window_length;
	}
	if (bucket->epoch != epoch)
	{
		memset(bucket, 0, sizeof(*bucket));
		bucket->epoch = epoch;
	}
	return bucket;
}

static void
circuit_sum(const Circuit *circuit, const CircuitRules *rules, int64 now,
			CircuitBucket *sum)
{
	int64		epoch = now / Max(rules->window_length / CIRCUIT_BUCKETS, 1);

	memset(sum, 0, sizeof(*sum));
	if (circuit->window_length != rules->window_length)
		return;
	for (int i = 0; i < CIRCUIT_BUCKETS; i++)
	{
		const CircuitBucket *bucket = &circuit->buckets[i];

		if (bucket->epoch <= epoch - CIRCUIT_BUCKETS)
			continue;
		sum->calls += bucket->calls;
		sum->failures += bucket->failures;
		sum->slow += bucket->slow;
	}
}

static bool
circuit_too_many(const CircuitBucket *counts, const CircuitRules *rules)
{
	return counts->failures * 100.0 >= counts->calls * rules->failure_rate ||
		(counts->slow > 0 &&
		 counts->slow * 100.0 >= counts->calls * rules->slow_rate);
}

static int
circuit_failing_clients(const Circuit *circuit, const CircuitRules *rules,
						int64 now)
{
	int			n = 0;

	for (int i = 0; i < CIRCUIT_MAX_CLIENTS; i++)
		if (circuit->clients[i].client != 0 &&
			circuit->clients[i].failed_at > now - rules->window_length)
			n++;
	return n;
}

/* In its place, or in that of the one whose failure is the longest ago. */
static void
circuit_note_client(Circuit *circuit, uint64 client, int64 now)
{
	CircuitClient *place = &circuit->clients[0];

	for (int i = 0; i < CIRCUIT_MAX_CLIENTS; i++)
	{
		CircuitClient *other = &circuit->clients[i];

		if (other->client == client)
		{
			place = other;
			break;
		}
		if (other->failed_at < place->failed_at)
			place = other;
	}
	place->client = client;
	place->failed_at = now;
}

static void
circuit_drop_probe(Circuit *circuit, int i)
{
	circuit->nprobes--;
	memmove(&circuit->probes[i], &circuit->probes[i + 1],
			(circuit->nprobes - i) * sizeof(circuit->probes[0]));
}
