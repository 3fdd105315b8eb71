/*
 * circuit.c
 *	  The arithmetic of circuit breakers (src/circuit.c), without a server and with a
 *	  clock that stands until it is told to go on.  Says what it finds as TAP; built
 *	  and run by test/t/024_circuit.pl.
 */
#include "postgres.h"

#include <stdio.h>

/* those of the C library will do: PostgreSQL's would have to be linked */
#undef printf
#undef snprintf

#include "../../src/circuit.c"

#define MSEC		INT64CONST(1000)
#define SEC			(1000 * MSEC)

/* A clock that has been running for a while, not at the beginning of a tenth. */
#define BEGINNING	(123456 * SEC + 789)

static Circuit circuit;
static CircuitRules rules;
static int64 now;
static int	ntests = 0;
static int	nfailed = 0;

/* ----------------------------------------------------------------
 *						What tests are made of
 * ----------------------------------------------------------------
 */

static void
is(int64 have, int64 want, const char *name)
{
	bool		ok = have == want;

	printf("%s %d - %s\n", ok ? "ok" : "not ok", ++ntests, name);
	if (ok)
		return;
	nfailed++;
	printf("# have %lld, want %lld\n", (long long) have, (long long) want);
}

/* A new breaker under the default rules, but for the window: ten tenths of 1 s. */
static void
begin(void)
{
	memset(&circuit, 0, sizeof(circuit));
	rules = (CircuitRules)
	{
		.failure_rate = 50,
		.minimum_calls = 20,
		.window_length = 10 * SEC,
		.open_for = 30 * SEC,
		.half_open_probes = 3,
		.slow_call = PG_INT64_MAX,
		.slow_rate = 100,
		.quorum = 1
	};
	now = BEGINNING;
}

static bool
allow(void)
{
	return circuit_allow(&circuit, &rules, now);
}

static CircuitSight
see(void)
{
	CircuitSight sight;

	circuit_see(&circuit, &rules, now, &sight);
	return sight;
}

static CircuitState
state(void)
{
	return see().state;
}

/* So many calls of one client. */
static void
record_of(uint64 client, int n, bool success, int64 duration)
{
	while (n-- > 0)
		circuit_record(&circuit, &rules, now, success, duration, client);
}

static void
good(int n)
{
	record_of(1, n, true, 0);
}

static void
bad(int n)
{
	record_of(1, n, false, 0);
}

/* Opened just now. */
static void
begin_open(void)
{
	begin();
	bad(20);
}

/* Half open just now. */
static void
begin_half_open(void)
{
	begin_open();
	now += rules.open_for;
	(void) state();
}

/* ----------------------------------------------------------------
 *						Closed
 * ----------------------------------------------------------------
 */

static void
test_rates(void)
{
	begin();
	is(state(), CIRCUIT_CLOSED, "a new breaker is closed");
	is(allow(), true, "and allows");
	bad(19);
	is(state(), CIRCUIT_CLOSED, "failures, but too few calls");
	bad(1);
	is(state(), CIRCUIT_OPEN, "enough calls");

	begin();
	good(51);
	bad(50);
	is(state(), CIRCUIT_CLOSED, "50 of 101 failures are less than 50 percent");
	bad(1);
	is(state(), CIRCUIT_OPEN, "51 of 102 are not");

	begin();
	rules.failure_rate = 100;
	good(1);
	bad(1000);
	is(state(), CIRCUIT_CLOSED, "at 100 percent one good call is enough");

	begin();
	rules.failure_rate = 5e-324;
	good(1000);
	is(state(), CIRCUIT_CLOSED, "no failures are less than any percentage");
	bad(1);
	is(state(), CIRCUIT_OPEN, "one failure is more than the smallest");

	begin();
	rules.minimum_calls = 1;
	good(1);
	is(state(), CIRCUIT_CLOSED, "one good call");
	bad(1);
	is(state(), CIRCUIT_OPEN, "a failure that is half of two");

	begin();
	rules.slow_call = 1 * SEC;
	rules.slow_rate = 25;
	record_of(1, 15, true, 1 * SEC);
	record_of(1, 4, true, 1 * SEC + 1);
	is(see().counts.slow, 4, "a call that takes as long as slow_call is not slow");
	is(state(), CIRCUIT_CLOSED, "19 calls, 4 of them slow");
	record_of(1, 1, true, 2 * SEC);
	is(state(), CIRCUIT_OPEN, "5 slow ones of 20 are 25 percent");

	begin();
	record_of(1, 100, true, PG_INT64_MAX);
	is(see().counts.slow, 0, "without slow_call no call is slow");
	is(state(), CIRCUIT_CLOSED, "and none opens it");
}

static void
test_window(void)
{
	begin();
	now = 1000 * rules.window_length;	/* the beginning of a tenth */
	bad(5);
	is(see().counts.calls, 5, "calls of now count");
	now += rules.window_length - 1;
	is(see().counts.calls, 5, "to the end of the window");
	now += 1;
	is(see().counts.calls, 0, "and no longer");

	begin();
	now = 1000 * rules.window_length + SEC - 1; /* the end of a tenth */
	bad(5);
	now += 9 * SEC;
	is(see().counts.calls, 5, "at the end of a tenth: for nine tenths more");
	now += 1;
	is(see().counts.calls, 0, "and no longer");

	begin();
	for (int i = 0; i < 10; i++)
	{
		good(i + 1);
		now += SEC;
	}
	is(see().counts.calls, 54, "ten tenths have gone by, and with them the first one");
	for (int i = 1, left = 54; i < 10; i++)
	{
		char		name[64];

		left -= i + 1;
		now += SEC;
		snprintf(name, sizeof(name), "and after %d more tenths %d", i, i);
		is(see().counts.calls, left, name);
	}

	/* a tenth that comes again to the place of one that was never cleared */
	begin();
	bad(19);
	now += 10 * rules.window_length;
	is(see().counts.calls, 0, "nothing is left after ten windows");
	good(1);
	is(see().counts.calls, 1, "in the place of the old calls there is a new one");
	is(see().counts.failures, 0, "and none of their failures");
	bad(1);
	is(state(), CIRCUIT_CLOSED, "what is out of the window does not open it");

	/* the shortest window, and the longest */
	begin();
	rules.window_length = 10 * MSEC;
	bad(19);
	now += 10 * MSEC;
	bad(19);
	is(state(), CIRCUIT_CLOSED, "a window of 10 ms");
	is(see().counts.calls, 19, "is over after 10 ms");
	begin();
	rules.window_length = 365 * 86400 * SEC;
	bad(19);
	now += rules.window_length / 2;
	bad(1);
	is(state(), CIRCUIT_OPEN, "a window of a year");

	/* a server that was started just now */
	begin();
	now = 0;
	bad(19);
	is(see().counts.calls, 19, "a clock that stands at 0");
	now = 9 * SEC;
	bad(1);
	is(state(), CIRCUIT_OPEN, "counts like any other");

	begin();
	bad(10);
	rules.minimum_calls = 5;
	is(see().counts.calls, 10, "under other rules the counts are kept");
	rules.window_length = 20 * SEC;
	is(see().counts.calls, 0, "but not in another window");
	good(1);
	is(see().counts.calls, 1, "which begins empty");
	rules.window_length = 10 * SEC;
	good(1);
	is(see().counts.calls, 1, "and again if it is changed back");
}

/* A list of calls, and what is in the window of it, beside what is counted. */
static void
test_against_list(void)
{
	static struct
	{
		int64		tenth;
		bool		failure;
		bool		slow;
	}			calls[20000];
	uint64		seed = 42;
	int			ncalls = 0;
	int			wrong = 0;

	begin();
	rules.window_length = 100 * MSEC;
	rules.slow_call = SEC;
	rules.minimum_calls = PG_INT32_MAX;
	while (ncalls < (int) lengthof(calls))
	{
		CircuitBucket want = {0};
		CircuitSight sight;

		/* Knuth's MMIX; the upper bits are the good ones */
		seed = seed * UINT64CONST(6364136223846793005) + UINT64CONST(1442695040888963407);
		if ((seed >> 60) == 0)
			now += (seed >> 32) % (300 * MSEC);
		else
			now += (seed >> 32) % (2 * MSEC);
		calls[ncalls].tenth = now / (10 * MSEC);
		calls[ncalls].failure = (seed >> 59) & 1;
		calls[ncalls].slow = ((seed >> 57) & 3) == 0;
		circuit_record(&circuit, &rules, now, !calls[ncalls].failure,
					   calls[ncalls].slow ? 2 * SEC : 0, 1);
		ncalls++;

		for (int i = ncalls - 1; i >= 0 && calls[i].tenth > now / (10 * MSEC) - 10; i--)
		{
			want.calls++;
			want.failures += calls[i].failure;
			want.slow += calls[i].slow;
		}
		sight = see();
		if (sight.counts.calls != want.calls ||
			sight.counts.failures != want.failures ||
			sight.counts.slow != want.slow)
			wrong++;
	}
	is(wrong, 0, "20000 calls at random, counted as from a list");
}

static void
test_clients(void)
{
	begin();
	rules.quorum = 3;
	record_of(1, 100, false, 0);
	record_of(2, 100, false, 0);
	record_of(3, 100, true, 0);
	is(see().failing_clients, 2, "clients whose calls go well do not count");
	is(state(), CIRCUIT_CLOSED, "two of three that it takes");
	record_of(3, 1, false, 0);
	is(state(), CIRCUIT_OPEN, "three");

	begin();
	rules.quorum = 2;
	record_of(1, 100, false, 0);
	now += rules.window_length;
	record_of(2, 100, false, 0);
	is(see().failing_clients, 1, "a failure counts for a window");
	is(state(), CIRCUIT_CLOSED, "not for longer");
	record_of(1, 1, false, 0);
	is(state(), CIRCUIT_OPEN, "and again when it comes again");

	begin();
	rules.minimum_calls = PG_INT32_MAX;
	for (int i = 1; i <= 16; i++)
	{
		now += 1;
		record_of(i, 1, false, 0);
	}
	is(see().failing_clients, 16, "as many clients as are remembered");
	for (int i = 17; i <= 40; i++)
	{
		now += 1;
		record_of(i, 1, false, 0);
	}
	is(see().failing_clients, 16, "and no more");
	is(circuit.clients[0].client, 33, "the one whose failure is the longest ago makes room");
	record_of(25, 1, false, 0);
	is(see().failing_clients, 16, "one that is known does not take another's place");
	now += 1;
	record_of(41, 1, false, 0);
	for (int i = 0, n = 0; i < CIRCUIT_MAX_CLIENTS; i++)
	{
		n += circuit.clients[i].client == 25;
		if (i == CIRCUIT_MAX_CLIENTS - 1)
			is(n, 1, "nor loses its own as the oldest after it has failed again");
	}

	begin();
	rules.quorum = 16;
	for (int i = 1; i <= 15; i++)
		record_of(i, 10, false, 0);
	is(state(), CIRCUIT_CLOSED, "15 clients of 16");
	record_of(16, 1, false, 0);
	is(state(), CIRCUIT_OPEN, "the largest quorum can be reached");
}

/* ----------------------------------------------------------------
 *						Open, half open
 * ----------------------------------------------------------------
 */

static void
test_open(void)
{
	begin_open();
	is(allow(), false, "an open breaker does not allow");
	is(see().open_for, 30 * SEC, "for as long as it was told");
	is(see().counts.calls, 0, "and has forgotten what it had counted");
	is(see().failing_clients, 0, "and whose calls had failed");
	good(100);
	bad(100);
	is(see().counts.calls, 0, "late answers are not counted");
	is(see().open_for, 30 * SEC, "and do not make it longer");
	rules.open_for = SEC;
	is(see().open_for, 30 * SEC, "nor do other rules make it shorter");
	rules.open_for = 30 * SEC;
	now += 30 * SEC - 1;
	is(allow(), false, "to the end");
	is(see().open_for, 1, "of which there is a microsecond left");
	now += 1;
	is(allow(), true, "then one may try");
	is(state(), CIRCUIT_HALF_OPEN, "for it is half open");
	is(see().open_for, 0, "and not open for any time");
}

static void
test_half_open(void)
{
	begin_half_open();
	is(state(), CIRCUIT_HALF_OPEN, "half open also if nobody asks");
	is(see().probes, 0, "nobody tries yet");
	bad(5);
	is(see().counts.calls, 0, "what comes without a probe out is not counted");
	is(allow() + allow() + allow() + allow() + allow(), 3, "as many may try as there are probes");
	is(see().probes, 3, "and they are out");
	good(1);
	is(see().probes, 2, "an answer is one of them");
	is(allow(), false, "which nobody gets instead");
	bad(1);
	is(state(), CIRCUIT_HALF_OPEN, "two are not all");
	good(1);
	is(state(), CIRCUIT_CLOSED, "1 of 3 failures is less than 50 percent: closed");
	is(see().counts.calls, 0, "with nothing counted");
	is(see().failing_clients, 0, "and nobody's failure");
	good(20);
	bad(19);
	is(state(), CIRCUIT_CLOSED, "19 failures of 39");
	bad(1);
	is(state(), CIRCUIT_OPEN, "20 of 40: it counts as before");

	begin_half_open();
	(void) (allow() + allow() + allow());
	good(1);
	bad(2);
	is(state(), CIRCUIT_OPEN, "2 of 3 failures: open again");
	is(see().open_for, 30 * SEC, "for the whole time");
	is(see().probes, 0, "with no probes");
	now += 30 * SEC;
	is(allow() + allow() + allow() + allow(), 3, "and then again as many may try");

	begin_half_open();
	rules.slow_call = SEC;
	rules.slow_rate = 50;
	(void) (allow() + allow() + allow());
	record_of(1, 2, true, 2 * SEC);
	good(1);
	is(state(), CIRCUIT_OPEN, "probes that are slow open it, too");

	begin_half_open();
	rules.quorum = 16;
	(void) (allow() + allow() + allow());
	bad(3);
	is(state(), CIRCUIT_OPEN, "probes are not subject to the quorum");

	begin_half_open();
	rules.half_open_probes = CIRCUIT_MAX_PROBES;
	for (int i = 0; i < CIRCUIT_MAX_PROBES; i++)
		if (!allow())
			is(i, CIRCUIT_MAX_PROBES, "may try");
	is(allow(), false, "as many probes as there can be, and no more");
	good(CIRCUIT_MAX_PROBES - 1);
	is(state(), CIRCUIT_HALF_OPEN, "all but one are answered");
	good(1);
	is(state(), CIRCUIT_CLOSED, "all of them are");
}

static void
test_lost_probes(void)
{
	begin_half_open();
	(void) allow();
	now += 10 * SEC;
	(void) allow();
	now += 10 * SEC;
	(void) allow();
	is(see().probes, 3, "three probes are out, one after the other");
	now += 10 * SEC - 1;
	is(allow(), false, "they are waited for for open_for");
	now += 1;
	is(allow(), true, "then the first one is given to somebody else");
	is(allow(), false, "that one and no other");
	is(see().probes, 3, "three are out");
	now += 1000 * SEC;
	is(allow() + allow() + allow() + allow(), 3, "after a long time all of them are");
	good(3);
	is(state(), CIRCUIT_CLOSED, "and close it");

	/* late answers are answers, as long as nobody else has the probe */
	begin_half_open();
	(void) (allow() + allow() + allow());
	now += 1000 * SEC;
	good(3);
	is(state(), CIRCUIT_CLOSED, "late answers close it, too");

	/* the middle one of three */
	begin_half_open();
	(void) allow();
	rules.open_for = SEC;
	(void) allow();
	rules.open_for = 30 * SEC;
	(void) allow();
	now += SEC;
	is(allow(), true, "a probe that is lost makes room among others");
	is(see().probes, 3, "which are still out");
	now += 29 * SEC - 1;
	is(allow(), false, "and waited for");
	now += 1;
	is(allow() + allow() + allow(), 2, "to their end");
}

/* However the rules are changed while it is half open, it does not stay so. */
static void
test_fewer_probes(void)
{
	for (int answered = 1; answered < 4; answered++)
		for (int left = 1; left <= answered; left++)
		{
			char		name[80];
			int			i;

			begin_half_open();
			rules.half_open_probes = 4;
			(void) (allow() + allow() + allow() + allow());
			good(answered);
			now += rules.open_for;	/* the others are lost */
			rules.half_open_probes = left;
			for (i = 0; i < 10 && state() == CIRCUIT_HALF_OPEN; i++)
			{
				if (allow())
					good(1);
				now += rules.open_for;
			}
			snprintf(name, sizeof(name),
					 "%d of 4 probes are answered, and then %d are enough", answered, left);
			is(state(), CIRCUIT_CLOSED, name);
		}
}

/* ----------------------------------------------------------------
 *						Forced
 * ----------------------------------------------------------------
 */

static void
test_forced(void)
{
	begin();
	circuit.force = CIRCUIT_FORCED_OPEN;
	is(allow(), false, "forced open, it does not allow");
	is(state(), CIRCUIT_OPEN, "and is seen as open");
	is(see().forced, true, "by force");
	is(see().open_for, 0, "for nobody knows how long");
	good(30);
	is(see().counts.calls, 30, "calls are counted all the same");
	circuit.force = CIRCUIT_AUTO;
	is(allow(), true, "given back, it is as closed as it was");

	circuit.force = CIRCUIT_FORCED_CLOSED;
	bad(30);
	is(allow(), true, "forced closed, it allows");
	is(state(), CIRCUIT_CLOSED, "whatever fails");
	is(see().forced, true, "by force");
	circuit.force = CIRCUIT_AUTO;
	is(state(), CIRCUIT_OPEN, "given back, it is as open as it should be");

	circuit.force = CIRCUIT_FORCED_CLOSED;
	now += rules.open_for;
	is(allow() + allow() + allow() + allow(), 4, "while it would be half open all are allowed");
	is(see().probes, 0, "and none is a probe");
	circuit.force = CIRCUIT_AUTO;
	is(allow() + allow() + allow() + allow(), 3, "given back, it is half open");
	circuit.force = CIRCUIT_FORCED_OPEN;
	good(3);
	is(circuit.force, CIRCUIT_FORCED_OPEN, "force survives a change of the state beneath");
	circuit.force = CIRCUIT_AUTO;
	is(state(), CIRCUIT_CLOSED, "which there was");
}

int
main(void)
{
	test_rates();
	test_window();
	test_against_list();
	test_clients();
	test_open();
	test_half_open();
	test_lost_probes();
	test_fewer_probes();
	test_forced();
	printf("1..%d\n", ntests);
	return nfailed > 0;
}
