# Batches: ten thousand keys in one transaction, eight at a time, on default
# settings; the same keys from all sides, in any order, without a deadlock; and a
# storm of batches that overlap, under all isolation levels, with savepoints rolled
# back and backends terminated.
#
# IDEM_STORM_SECONDS says how long the storm lasts; what is asserted does not
# depend on it, nor on how fast anything is.

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

my $seconds = $ENV{IDEM_STORM_SECONDS} || 5;
my $sessions = 8;
my $keys = 10_000;
my $terminate_every = 0.15;

my $node = PostgreSQL::Test::Cluster->new('batch');
$node->init;
$node->append_conf('postgresql.conf', <<'EOT');
max_connections = 20
deadlock_timeout = '10ms'
statement_timeout = '60s'
idle_in_transaction_session_timeout = '60s'
log_line_prefix = '%m [%p] %a SQLSTATE=%e '
log_min_messages = warning
log_statement = none
EOT
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION idempotency;
	CREATE TABLE effect (key text, response jsonb);
	CREATE TABLE replay (key text, response jsonb);

	-- Claims the keys, does the work of those that it got, and finishes them.
	-- Counts the outcomes; who waits is not told that a key is busy.
	CREATE FUNCTION batch(keys text[], OUT claimed int, OUT replayed int, OUT other int)
	LANGUAGE plpgsql VOLATILE AS $$
	DECLARE
		run uuid := gen_random_uuid();
		mine text[];
		finished int;
	BEGIN
		WITH answer AS MATERIALIZED (SELECT * FROM idem_claim_many(keys)),
			 seen AS (INSERT INTO replay SELECT key, response FROM answer WHERE outcome = 'replayed')
		SELECT array_agg(key) FILTER (WHERE outcome = 'claimed'),
			   count(*) FILTER (WHERE outcome = 'claimed'),
			   count(*) FILTER (WHERE outcome = 'replayed'),
			   count(*) FILTER (WHERE outcome NOT IN ('claimed', 'replayed'))
		  INTO STRICT mine, claimed, replayed, other FROM answer;
		WITH work AS (
			INSERT INTO effect
			SELECT key, jsonb_build_object('key', key, 'run', run)
			  FROM unnest(mine) AS key ORDER BY random()
			RETURNING key, response)
		SELECT count(*) INTO STRICT finished
		  FROM (SELECT array_agg(key) AS keys, array_agg(response) AS responses FROM work) AS w,
			   idem_finish_many(coalesce(w.keys, '{}'), w.responses);
		ASSERT finished = claimed, 'all that is claimed is finished';
		ASSERT other = 0, 'claimed or replayed';
	END $$;

	-- In the order of the keys they have the order of their numbers.
	CREATE FUNCTION numbered(prefix text, first int, last int) RETURNS text[]
	LANGUAGE sql VOLATILE AS $$
		SELECT array_agg(prefix || to_char(i, 'FM00000') ORDER BY random())
		  FROM generate_series(first, last) AS i
	$$;
});

my $count = sub { $node->safe_psql('postgres', "SELECT count(*) FROM $_[0]") };
my $watch = $node->background_psql('postgres', on_error_stop => 0);
my $max_locks = $watch->query_safe('SHOW max_locks_per_transaction');
is($max_locks, 64, 'the lock table has its default size');

# Sessions that begin a statement each, at once.
sub begin
{
	my @session;

	for my $i (0 .. $#_)
	{
		$session[$i] = $node->background_psql('postgres', on_error_stop => 0);
	}
	for my $i (0 .. $#_)
	{
		$session[$i]{stdin} .= "$_[$i]\n\\echo batch is done\n";
		$session[$i]{run}->pump_nb;
	}
	return @session;
}

# Wait for them: their last lines, or errors. Meanwhile one more session counts how
# many keys each of them has locked, and keeps the most.
my $most;

sub answers
{
	my @session = @_;
	my @answer;

	$most = 0;
	while (grep { !defined $answer[$_] } 0 .. $#session)
	{
		my $locks = $watch->query_safe(q{
			SELECT coalesce(max(n), 0) FROM (
				SELECT count(*) AS n FROM pg_locks
				 WHERE locktype = 'advisory' AND objsubid = 18756 GROUP BY pid) AS l});
		$most = $locks if $locks > $most;
		for my $i (grep { !defined $answer[$_] } 0 .. $#session)
		{
			die 'timed out' if $session[$i]{timeout}->is_expired;
			$session[$i]{run}->pump_nb;
			next unless $session[$i]{stdout} =~ s/^(.*?)\n*batch is done\n//s;
			my $out = $1;
			$session[$i]{run}->pump_nb;
			$answer[$i] = $session[$i]{stderr} || ($out =~ /([^\n]*)$/)[0];
			$session[$i]{stdout} = '';
		}
	}
	return @answer;
}

# Ten thousand keys each, all different. The transactions stay open until all have
# claimed, so that they hold all at the same time.

my @own = map { "numbered('own-$_-', 1, $keys)" } 1 .. $sessions;
my @session = begin(map { "BEGIN;\nSELECT * FROM batch($_);" } @own);
is(join(' ', answers(@session)), join(' ', ("$keys|0|0") x $sessions),
	"$sessions transactions have claimed and finished $keys keys each");
cmp_ok($most, '<=', $max_locks + 8, 'with not many more locks than they may have');
note "at most $most locks";
is($watch->query_safe(q{
	SELECT min(n), max(n), count(*) FROM (
		SELECT count(*) AS n FROM pg_locks
		 WHERE locktype = 'advisory' AND objsubid = 18756 GROUP BY pid) AS l}),
	"$max_locks|$max_locks|$sessions",
	'each holds max_locks_per_transaction of its keys by locks');
is($count->(q{idem_lookup('own-1-00001')}), 0, 'nothing of it is to be seen yet');
is($node->safe_psql('postgres', qq{
	SELECT count(*), string_agg(DISTINCT outcome, ' ') FROM idem_claim_many(
		ARRAY(SELECT own[k] FROM unnest('{@{[join ',', 1 .. $sessions]}}'::int[]) AS s,
					 numbered(format('own-%s-', s), 1, $keys) AS own,
					 generate_series(1, $keys, 500) AS k), wait => '0')}),
	$sessions * $keys / 500 . '|in_progress', 'but all of it is busy');
$_->query_safe('COMMIT') for @session;
is($count->('effect'), $sessions * $keys, 'each key is worked on');
$_->quit for @session;

@session = begin(map { "SELECT * FROM batch($_);" } @own);
is(join(' ', answers(@session)), join(' ', ("0|$keys|0") x $sessions), 'each key is replayed');
cmp_ok($most, '<=', 1, 'replays keep no locks');
$_->quit for @session;
$node->safe_psql('postgres', 'TRUNCATE replay');

# Sessions that overlap: each of their keys is claimed or replayed, and each is
# claimed once, by those who may.
sub check_overlap
{
	my ($how, $given, @answer) = @_;
	my ($claimed, $replayed) = (0, 0);

	for (@answer)
	{
		like($_, qr/^\d+\|\d+\|0$/, "$how: claimed or replayed") or next;
		my ($c, $r) = split /\|/;
		$claimed += $c;
		$replayed += $r;
	}
	is($claimed + $replayed, $given, "$how: all of the keys");
	cmp_ok($most, '<=', $max_locks + 8, "$how: not too many locks");
	return $claimed;
}

# The same ten thousand from all sides, each time in another order.

@session = begin(map { "SELECT * FROM batch(numbered('same-', 1, $keys));" } 1 .. $sessions);
is(check_overlap('the same keys', $keys * $sessions, answers(@session)), $keys,
	'each was claimed once');
$_->quit for @session;

# One has claimed all of them, most by rows that are written ahead. The others
# come to such a row first, each to another one, and wait. When the first one has
# committed, there is nothing left to do; when it rolls back, all there is.

for my $end ('COMMIT', 'ROLLBACK')
{
	my $first = $node->background_psql('postgres', on_error_stop => 0);
	$first->query_safe("BEGIN; SELECT * FROM batch(numbered('$end-', 1, $keys))");
	my $given = 0;
	@session = begin(map {
			my $from = $_ * $keys / $sessions;
			$given += $keys - $from + 1;
			"SELECT * FROM batch(numbered('$end-', $from, $keys));"
		} 1 .. $sessions - 1);
	ok($node->poll_query_until('postgres', sprintf q{
		SELECT count(*) = %d FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted
	}, $sessions - 1), "$end: all the others wait for a row");
	$first->query_safe($end);
	$first->quit;
	is(check_overlap($end, $given, answers(@session)),
		$end eq 'COMMIT' ? 0 : $keys - $keys / $sessions + 1, "$end: claimed in the end");
	$_->quit for @session;
}

sub check
{
	my ($how) = @_;

	is($count->('(SELECT key FROM effect GROUP BY key HAVING count(*) <> 1) AS x'), 0,
		"$how: no work was done twice");
	is($count->('effect AS e FULL JOIN idem_key AS k USING (key)
		WHERE e.response IS DISTINCT FROM k.response'), 0,
		"$how: each record has the response of its work");
	is($count->('replay AS r LEFT JOIN idem_key AS k USING (key)
		WHERE r.response IS DISTINCT FROM k.response'), 0,
		"$how: and so has each replay");
	is($count->(q{idem_key WHERE state <> 'f'}), 0, "$how: all are finished");
	is($count->(q{pg_locks WHERE locktype = 'advisory'}), 0, "$how: no lock is left");
	is($count->('idem_in_flight'), 0, "$how: nor a claim");
	unlike(slurp_file($node->logfile), qr/deadlock detected/, "$how: no deadlock");
	return;
}
check('ten thousand');

# Who waits for a key has let go of the pages of those before it: VACUUM may freeze
# them, however long that takes.
SKIP:
{
	my ($holder, $waiter) = map { $node->background_psql('postgres') } 1 .. 2;

	skip 'pg_buffercache is not installed', 1
	  unless $node->safe_psql('postgres', q{
		SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_buffercache'});
	$node->safe_psql('postgres', q{
		CREATE EXTENSION pg_buffercache;
		SELECT idem_finish('pin-1') FROM idem_claim('pin-1');});
	$holder->query_safe(q{BEGIN; SELECT FROM idem_claim('pin-2');});
	$waiter->query_until(qr/waits/, q{\echo waits
		SET application_name = 'waiter';
		BEGIN;
		SELECT outcome FROM idem_claim_many('{pin-1,pin-2}');
		ROLLBACK;
	});
	$node->poll_query_until('postgres', q{
		SELECT count(*) = 1 FROM pg_stat_activity
		 WHERE application_name = 'waiter' AND wait_event_type = 'Lock'});
	is($node->safe_psql('postgres', q{
		SELECT max(pinning_backends) FROM pg_buffercache
		 WHERE relfilenode = pg_relation_filenode('idem_key')
		   AND reldatabase = (SELECT oid FROM pg_database WHERE datname = current_database())}),
		0, 'a batch that waits has no page pinned');
	$holder->query_safe('ROLLBACK');
	$_->quit for $holder, $waiter;
	$node->safe_psql('postgres', q{SELECT idem_forget('pin-1')});
}

# The storm. Keys come in waves of 400, so that there is always something to be
# claimed; a batch has 2 to 150 of them, some of them more than may be locked. What
# a transaction claims in two batches, it claims in the order of the keys.

$node->safe_psql('postgres', q{
	CREATE FUNCTION pick() RETURNS text[] LANGUAGE sql VOLATILE AS $$
		SELECT array_agg(key) FROM (
			SELECT format('wave-%s-%s', floor(extract(epoch FROM clock_timestamp()) * 5), i)
			  FROM generate_series(1, 400) AS i
			 ORDER BY random() LIMIT 2 + random() * 148) AS k(key)
	$$;
	CREATE FUNCTION half(keys text[], upper boolean) RETURNS text[] LANGUAGE sql AS $$
		SELECT coalesce(array_agg(key ORDER BY random()), '{}')
		  FROM (SELECT key, 2 * row_number() OVER (ORDER BY key COLLATE "C") > count(*) OVER () AS is_upper
				  FROM unnest(keys) AS key) AS k
		 WHERE is_upper = upper
	$$;
});
my $batch = 'SELECT * FROM batch(:keys);';
my $halves = "SELECT * FROM batch(half(:keys, false));\nSELECT * FROM batch(half(:keys, true));";
my @behaviour = (
	[ 'plain', 6, "BEGIN;\n$batch\nCOMMIT;" ],
	[ 'repeatable', 4, "BEGIN ISOLATION LEVEL REPEATABLE READ;\n$batch\nCOMMIT;" ],
	[ 'serializable', 4, "BEGIN ISOLATION LEVEL SERIALIZABLE;\n$batch\nCOMMIT;" ],
	[ 'undecided', 2, "BEGIN;\n$batch\nROLLBACK;" ],
	[ 'halves', 4, "BEGIN;\n$halves\nCOMMIT;" ],
	[ 'halves_repeatable', 2, "BEGIN ISOLATION LEVEL REPEATABLE READ;\n$halves\nCOMMIT;" ],
	[ 'second_thoughts', 4,
		"BEGIN;\nSAVEPOINT s;\n$batch\nROLLBACK TO s;\n"
		  . "SELECT * FROM batch(:others);\nCOMMIT;" ],
	[ 'second_thoughts_serializable', 2,
		"BEGIN ISOLATION LEVEL SERIALIZABLE;\nSAVEPOINT s;\n$batch\nROLLBACK TO s;\n"
		  . "$batch\nCOMMIT;" ],
	[ 'kept_savepoint', 2, "BEGIN;\nSAVEPOINT s;\n$batch\nRELEASE s;\nCOMMIT;" ]);

my $dir = PostgreSQL::Test::Utils::tempdir;
my @scripts;
for my $b (@behaviour)
{
	my ($name, $weight, $sql) = @$b;
	append_to_file("$dir/$name.sql", "SELECT pick() AS keys, pick() AS others \\gset\n$sql\n");
	push @scripts, '-f', "$dir/$name.sql\@$weight";
}

my ($transactions, $retries, $started, $terminated) = (0, 0, 0, 0);
my $deadline = time + $seconds;

# One process each: a lost connection ends pgbench, and a new one takes its place,
# as a client would retry.
sub start_client
{
	my ($client) = @_;
	my $left = int($deadline - time);
	local $ENV{PGAPPNAME} = 'storm';

	$left = 1 if $left < 1;
	$client->{out} = $client->{err} = '';
	$client->{run} = IPC::Run::start(
		[
			'pgbench', '-n', '-M', 'extended', '-c', 1, '-T', $left,
			'--max-tries', 1000, @scripts, '-h', $node->host, '-p',
			$node->port, 'postgres'
		],
		'<', \'', '>', \$client->{out}, '2>', \$client->{err});
	$started++;
	return;
}

sub end_client
{
	my ($client) = @_;

	$client->{run}->finish;
	delete $client->{run};
	$transactions += $1
	  if $client->{out} =~ /number of transactions actually processed: (\d+)/;
	$retries += $1 if $client->{out} =~ /total number of retries: (\d+)/;
	return;
}

my @client = map { {} } 1 .. $sessions;
my $next = time + $terminate_every;
while (time < $deadline || $terminated < 5)
{
	for my $client (@client)
	{
		if ($client->{run})
		{
			$client->{run}->pump_nb;
			next if $client->{run}->pumpable;
			end_client($client);
		}
		start_client($client);
	}
	if (time >= $next)
	{
		$next = time + $terminate_every;
		$terminated++ if $watch->query_safe(q{
			SELECT pg_terminate_backend(pid) FROM (
				SELECT pid FROM pg_stat_activity WHERE application_name = 'storm'
				 ORDER BY random() LIMIT 1) AS victim}) eq 't';
	}
	sleep 0.01;
}
for my $client (@client)
{
	end_client($client) if $client->{run};
}
ok($node->poll_query_until('postgres', q{
	SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'storm'}),
	'all clients are done');

note "$seconds s, $sessions workers: $transactions transactions committed, $retries retried, ",
  $count->(q{effect WHERE key LIKE 'wave-%'}), ' keys, ', $count->('replay'),
  " replays, $terminated backends terminated, $started workers started";
cmp_ok($count->(q{effect WHERE key LIKE 'wave-%'}), '>', 0, 'the storm has done something');
check('storm');

# Whatever was not done can be done, and whatever was is replayed.
is($node->safe_psql('postgres', q{
	SELECT claimed, replayed = (SELECT count(DISTINCT key) FROM effect), other FROM batch(ARRAY(
		SELECT key FROM (SELECT key FROM effect UNION SELECT key FROM replay) AS k ORDER BY random()))}),
	'0|t|0', 'all of it at once is replayed');

# Nothing went wrong but what has to: a terminated backend, a transaction to be
# retried.
my (%seen, %strange);
my $log = slurp_file($node->logfile);
while ($log =~ /SQLSTATE=(\w+) (ERROR|FATAL|PANIC|WARNING):  (.*)/g)
{
	$seen{$1}++;
	$strange{"$1 $3"}++ unless $1 =~ /^(57P01|40001)$/;
}
note join ', ', map { "$_: $seen{$_}" } sort keys %seen;
is(join("\n", sort keys %strange), '', 'no other error');
unlike($log, qr/without claiming it|lost to another transaction/,
	'nobody wrote a record that was somebody else\'s');
unlike($log, qr/TRAP|PANIC|terminated by signal/, 'the server did not crash');

$watch->quit;
$node->stop;
done_testing();
