# A retry storm: sixteen clients come again and again with the same hundred
# keys, in all the ways a transaction can go, while one of their backends is
# terminated every 200 ms and the index is rebuilt under them. Every key's work
# is done exactly once, and every repeat gets the response of that one time.
#
# IDEM_STORM_SECONDS says how long it lasts; what is asserted does not depend
# on it.

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

my $seconds = $ENV{IDEM_STORM_SECONDS} || 15;
my $clients = 16;
my $keys = 100;
my $kill_every = 0.2;

my $node = PostgreSQL::Test::Cluster->new('storm');
$node->init;
$node->append_conf('postgresql.conf', <<'EOT');
max_connections = 50
deadlock_timeout = '20ms'
statement_timeout = '60s'
idle_in_transaction_session_timeout = '60s'
log_line_prefix = '%m [%p] %a SQLSTATE=%e '
log_min_messages = warning
log_statement = none
EOT
$node->start;

# work() is what must be done once per key, and its response tells the runs
# apart. There is no unique constraint that could do it for us.
#
# Besides the hundred keys there are short-lived ones: a hundred more in every
# quarter of a second, so that there is always something to be claimed.
$node->safe_psql('postgres', q{
	CREATE EXTENSION idempotency;
	CREATE TABLE effect (key text, response jsonb);
	CREATE TABLE replay (key text, response jsonb);

	CREATE FUNCTION pick(n int) RETURNS text LANGUAGE sql VOLATILE AS $$
		SELECT CASE WHEN random() < 0.3 THEN format('pay-%s', n)
			ELSE format('wave-%s-%s',
						floor(extract(epoch FROM clock_timestamp()) * 4), n) END
	$$;

	CREATE FUNCTION work(key text) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
	DECLARE
		response jsonb := jsonb_build_object('key', key, 'run', gen_random_uuid());
	BEGIN
		INSERT INTO effect VALUES (key, response);
		IF random() < 0.3 THEN
			PERFORM pg_sleep(0.003);
		END IF;
		RETURN response;
	END $$;

	CREATE FUNCTION ask(key text, wait interval = NULL) RETURNS text
	LANGUAGE plpgsql VOLATILE AS $$
	DECLARE
		answer record;
	BEGIN
		SELECT * INTO STRICT answer FROM idem_claim(ask.key, wait => ask.wait);
		IF answer.outcome = 'replayed' THEN
			INSERT INTO replay VALUES (key, answer.response);
		END IF;
		RETURN answer.outcome;
	END $$;

	-- all in one statement, at the second try
	CREATE FUNCTION ask_and_work(key text) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
	DECLARE
		outcome text;
	BEGIN
		BEGIN
			IF ask(key) = 'claimed' THEN
				PERFORM idem_finish(key, work(key));
			END IF;
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
		END;
		outcome := ask(key);
		IF outcome = 'claimed' THEN
			PERFORM idem_finish(key, work(key));
		END IF;
		RETURN outcome;
	END $$;

	CREATE PROCEDURE settle(n int) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1 .. n LOOP
			IF ask('pay-' || i) = 'claimed' THEN
				PERFORM idem_finish('pay-' || i, work('pay-' || i));
			END IF;
			COMMIT;
		END LOOP;
	END $$;
});

# How clients behave, and how many of them.
my $ask = q{SELECT (outcome = 'claimed')::int AS claimed FROM ask(:key) AS outcome \gset};
my $work = qq{\\if :claimed\nSELECT idem_finish(:key, work(:key));\n\\endif};
my @behaviour = (
	[ 'plain', 20, "BEGIN;\n$ask\n$work\nCOMMIT;" ],
	[ 'repeatable', 8,
		"BEGIN ISOLATION LEVEL REPEATABLE READ;\n$ask\n$work\nCOMMIT;" ],
	[ 'serializable', 8,
		"BEGIN ISOLATION LEVEL SERIALIZABLE;\n$ask\n$work\nCOMMIT;" ],
	[ 'impatient', 6,
		"BEGIN;\n" . $ask =~ s/:key/:key, '0'/r . "\n$work\nCOMMIT;" ],
	[ 'patient', 6,
		"BEGIN;\n" . $ask =~ s/:key/:key, '4ms'/r . "\n$work\nCOMMIT;" ],
	[ 'together', 6, "SELECT ask_and_work(:key);" ],
	[ 'forgetful', 1,
		"BEGIN;\n$ask\n\\if :claimed\nSELECT work(:key);\n\\endif\nCOMMIT;" ],
	[ 'undecided', 4, "BEGIN;\n$ask\n$work\nROLLBACK;" ],
	[ 'releasing', 2,
		"BEGIN;\n$ask\n\\if :claimed\nSELECT idem_release(:key);\n\\endif\nCOMMIT;" ],
	[ 'second thoughts', 6,
		"BEGIN;\nSAVEPOINT s;\n$ask\n$work\nROLLBACK TO s;\n$ask\n$work\nCOMMIT;" ],
	[ 'second finish', 6, "BEGIN;\n$ask\nSAVEPOINT s;\n$work\n"
		  . "ROLLBACK TO s;\nRELEASE s;\n$work\nCOMMIT;" ],
	[ 'two keys', 6,
		"SELECT pick(:m) AS other \\gset\nBEGIN;\n$ask\n$work\n"
		  . join("\n", $ask, $work) =~ s/:key/:other/gr
		  . "\nCOMMIT;" ]);

my $dir = PostgreSQL::Test::Utils::tempdir;
my @scripts;
for my $b (@behaviour)
{
	my ($name, $weight, $sql) = @$b;
	my $file = "$dir/" . $name =~ s/ /_/gr . '.sql';
	append_to_file($file, "\\set n random(1, $keys)\n\\set m random(1, $keys)\n"
		  . "SELECT pick(:n) AS key \\gset\n$sql\n");
	push @scripts, '-f', "$file\@$weight";
}

# Clients, one process each: a lost connection ends pgbench, and a new one
# takes its place, as a client would retry.

my ($attempts, $retries, $restarts, $kills, $rebuilds) = (0, 0, 0, 0, 0);
my $deadline = time + $seconds;
my %strange;

$ENV{PGAPPNAME} = 'storm';

sub start_client
{
	my ($client) = @_;
	my $left = int($deadline - time);

	$left = 1 if $left < 1;
	$client->{out} = $client->{err} = '';
	$client->{run} = IPC::Run::start(
		[
			'pgbench', '-n', '-M', 'extended', '-c', 1, '-T', $left,
			'--max-tries', 1000, @scripts, '-h', $node->host, '-p',
			$node->port, 'postgres'
		],
		'<', \'', '>', \$client->{out}, '2>', \$client->{err});
	return;
}

# Take the count when a client has ended.
sub end_client
{
	my ($client) = @_;

	$client->{run}->finish;
	delete $client->{run};
	$restarts++;
	$attempts += $1
	  if $client->{out} =~ /number of transactions actually processed: (\d+)/;
	$retries += $1
	  if $client->{out} =~ /total number of retries: (\d+)/;
	return;
}

my @clients = map { {} } 1 .. $clients;
start_client($_) for @clients;

delete $ENV{PGAPPNAME};
my $killer = $node->background_psql('postgres', on_error_stop => 0);
my $upkeep = $node->background_psql('postgres', on_error_stop => 0);
$killer->query_safe(q{
	PREPARE kill_one AS
	SELECT 'killed' FROM (
		SELECT pid FROM pg_stat_activity
		 WHERE application_name = 'storm' AND backend_type = 'client backend'
		 ORDER BY random() LIMIT 1) AS victim
	 WHERE pg_terminate_backend(pid)
});
my $next_kill = time + $kill_every;

my $upkeep_busy = 0;
while (time < $deadline || $kills < 5)
{
	for my $client (@clients)
	{
		if ($client->{run})
		{
			$client->{run}->pump_nb;
			next if $client->{run}->pumpable;
			end_client($client);
		}
		local $ENV{PGAPPNAME} = 'storm';
		start_client($client);
	}

	if (time >= $next_kill)
	{
		$next_kill += $kill_every;
		$killer->{stdin} .= "EXECUTE kill_one;\n";
		$killer->{run}->pump_nb;
		$kills++ while $killer->{stdout} =~ s/killed\n//;
	}

	# The index is rebuilt, and the table is swept and vacuumed, all the time.
	$upkeep->{run}->pump_nb;
	if ($upkeep->{stdout} =~ s/upkeep done\n//)
	{
		$upkeep_busy = 0;
		$rebuilds++;
	}
	if (!$upkeep_busy)
	{
		$upkeep_busy = 1;
		$upkeep->{stdin} .=
			"REINDEX TABLE CONCURRENTLY idem_key;\nVACUUM idem_key;\n"
		  . "SELECT idem_expire() \\g /dev/null\n\\echo upkeep done\n";
		$upkeep->{run}->pump_nb;
	}
	sleep 0.01;
}
for my $client (@clients)
{
	end_client($client) if $client->{run};
}
$upkeep->query_until(qr/upkeep done/, '') if $upkeep_busy;
$upkeep->quit;
$killer->quit;

# Work that nobody came to do, because all who tried were killed.
$node->safe_psql('postgres', "CALL settle($keys)");

my $count = sub { $node->safe_psql('postgres', "SELECT count(*) FROM $_[0]") };
my $effects = $count->('effect');
my $replays = $count->('replay');
my $records = $count->('idem_key');
note "$seconds s, $clients clients: $attempts transactions committed, "
  . "$retries retried, $replays replays, $records keys claimed and finished, "
  . "$effects effects, $kills backends terminated, "
  . "$restarts clients started, $rebuilds rebuilds of the index";

is($count->(q{effect WHERE key LIKE 'pay-%'}), $keys,
	"the work of $keys keys was done $keys times");
is($effects, $records, 'as many works as records');
is($count->('(SELECT key FROM effect GROUP BY key HAVING count(*) <> 1) AS x'),
	0, 'the work of no key was done twice');
is($count->('effect AS e FULL JOIN idem_key AS k USING (key)
	WHERE e.response IS DISTINCT FROM k.response'),
	0, 'each record has the response of that work');
is($count->('replay AS r LEFT JOIN idem_key AS k USING (key)
	WHERE r.response IS DISTINCT FROM k.response'),
	0, 'and each replay, too');
is($count->(q{pg_locks WHERE locktype = 'advisory'}), 0, 'no lock is left');
is($count->('idem_in_flight'), 0, 'and no claim');
cmp_ok($replays, '>', 0, 'there were replays');

# Index and heap agree, rebuilt or not.
$node->safe_psql('postgres', 'CREATE EXTENSION amcheck');
is($node->psql('postgres', q{
	SELECT bt_index_check(indexrelid, true) FROM pg_index
	 WHERE indrelid = 'idem_key'::regclass AND indisvalid}),
	0, 'the index is sound');

# Nothing went wrong but what has to: a terminated backend, a forgotten
# finish, a transaction to be retried.
my %seen;
my $log = slurp_file($node->logfile);
while ($log =~ /SQLSTATE=(\w+) (ERROR|FATAL|PANIC|WARNING):  (.*)/g)
{
	# autovacuum gives way to the rebuild of the index
	next if $3 eq 'canceling autovacuum task';
	$seen{$1}++;
	$strange{"$1 $3"}++ unless $1 =~ /^(57P01|ID005|40001|40P01)$/;
}
note join ', ', map { "$_: $seen{$_}" } sort keys %seen;
is(join("\n", sort keys %strange), '', 'no other error');
unlike($log, qr/without claiming it|lost to another transaction/,
	'the lock kept everybody else from writing a record');
unlike($log, qr/TRAP|PANIC|terminated by signal/, 'the server did not crash');

$node->stop;
done_testing();
