# The fence under stress: eight workers lease keys for 30 ms and are away for
# up to three times as long, so that most leases are taken over while their
# holders still believe in them. Effect and finish are in one guarded
# transaction. Backends are terminated, and now and then one is killed, which
# takes the server down. No key has two committed effects, and every stale
# holder is refused with ID003.
#
# IDEM_FENCE_SECONDS says how long it lasts; what is asserted does not depend
# on it, nor on how fast anything is.

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Restart;
use Test::More;
use Time::HiRes qw(time sleep);

my $seconds = $ENV{IDEM_FENCE_SECONDS} || 10;
my $workers = 8;
my $terminate_every = 0.25;
my $kill_every = 4;

my $node = PostgreSQL::Test::Cluster->new('fence');
$node->init;
$node->append_conf('postgresql.conf', <<'EOT');
restart_after_crash = on
deadlock_timeout = '20ms'
lock_timeout = '30s'
idle_in_transaction_session_timeout = '60s'
log_line_prefix = '%m [%p] %a SQLSTATE=%e '
log_statement = none
EOT
$node->start;

# Every committed claim is in claim, in the order in which they were made for a
# key: the next one cannot be made before the last one is committed. A mark is
# what a guarded transaction without a finish leaves behind; a claim remembers
# how many there were before it, and none may be added to these.
$node->safe_psql('postgres', q{
	CREATE EXTENSION idempotency;
	CREATE TABLE claim (id bigserial PRIMARY KEY, key text, attempt int,
						token int8, marks int8);
	CREATE INDEX ON claim (key);
	CREATE TABLE mark (claim int8, key text);
	CREATE INDEX ON mark (key);
	CREATE TABLE effect (claim int8, key text, response jsonb);
	CREATE TABLE refused (claim int8, key text, what text);
	CREATE TABLE tally (what text);

	CREATE FUNCTION note_claim(key text, attempt int, token int8) RETURNS int8
	LANGUAGE sql VOLATILE AS $$
		INSERT INTO claim (key, attempt, token, marks)
		SELECT $1, $2, $3, count(*) FROM mark AS m WHERE m.key = $1
		RETURNING id
	$$;

	-- The effect of a claim, with its finish, in one transaction.
	CREATE FUNCTION work(claim int8, key text, token int8) RETURNS jsonb
	LANGUAGE plpgsql VOLATILE AS $$
	DECLARE
		response jsonb := jsonb_build_object('claim', claim);
	BEGIN
		INSERT INTO effect VALUES (claim, key, response);
		IF random() < 0.3 THEN
			PERFORM pg_sleep(random() * 0.02);
		END IF;
		RETURN idem_finish(key, response, token => token);
	END $$;

	CREATE PROCEDURE worker(holder text, seconds float8) LANGUAGE plpgsql AS $$
	DECLARE
		until timestamptz := clock_timestamp() + seconds * interval '1 s';
		k text;
		c record;
		id int8;
		what text;
	BEGIN
		WHILE clock_timestamp() < until LOOP
			-- a dozen keys every half a second, and one of the last dozen now and then
			k := format('%s-%s', floor(extract(epoch FROM clock_timestamp()) * 2 - random() * 0.4),
						floor(random() * 12));
			what := 'none';

			-- without a lease, in one transaction
			IF random() < 0.1 THEN
				SELECT * INTO STRICT c FROM idem_claim(k, wait => '5 ms');
				IF c.outcome = 'claimed' THEN
					PERFORM work(note_claim(k, c.attempt, NULL), k, NULL);
					INSERT INTO tally VALUES ('transactional');
				END IF;
				COMMIT;
				CONTINUE;
			END IF;

			SELECT * INTO STRICT c
			  FROM idem_claim(k, lease => '30 ms', holder => worker.holder,
							  wait => CASE WHEN random() < 0.5 THEN interval '20 ms' END);
			IF c.outcome <> 'claimed' THEN
				COMMIT;
				PERFORM pg_sleep(0.003);
				CONTINUE;
			END IF;
			id := note_claim(k, c.attempt, c.token);
			COMMIT;

			-- away, longer than the lease or not
			PERFORM pg_sleep(random() * 0.09);

			PERFORM set_config('default_transaction_isolation',
				(ARRAY['read committed', 'repeatable read', 'serializable'])[1 + floor(random() * 3)],
				false);
			COMMIT;
			IF random() < 0.3 THEN
				BEGIN
					what := 'renew';
					PERFORM idem_renew(k, '30 ms', token => c.token);
				EXCEPTION WHEN SQLSTATE 'ID003' THEN
					INSERT INTO refused VALUES (id, k, what);
				END;
				COMMIT;
				PERFORM pg_sleep(random() * 0.04);
				COMMIT;
			END IF;
			IF random() < 0.5 THEN
				BEGIN
					what := 'guard';
					PERFORM idem_guard(k, token => c.token);
					PERFORM pg_sleep(random() * 0.04);
					INSERT INTO mark VALUES (id, k);
				EXCEPTION WHEN SQLSTATE 'ID003' THEN
					INSERT INTO refused VALUES (id, k, what);
				END;
				COMMIT;
				PERFORM pg_sleep(random() * 0.04);
				COMMIT;
			END IF;
			BEGIN
				what := 'guarded finish';
				PERFORM idem_guard(k, token => c.token);
				what := 'finish';
				PERFORM work(id, k, c.token);
				INSERT INTO tally VALUES ('leased');
			EXCEPTION WHEN SQLSTATE 'ID003' THEN
				INSERT INTO refused VALUES (id, k, what);
			END;
			COMMIT;
			PERFORM set_config('default_transaction_isolation', 'read committed', false);
			COMMIT;
		END LOOP;
	END $$;
});

# One by one first: the guard holds a takeover off until its transaction ends,
# and then the former holder is refused.

my $token = $node->safe_psql('postgres',
	q{SELECT token FROM idem_claim('guarded', lease => '1 h')});
$node->safe_psql('postgres', q{
	UPDATE idem_key SET lease_until = clock_timestamp() WHERE key = 'guarded'});
my $holder = $node->background_psql('postgres', on_error_stop => 0);
$holder->query_safe("BEGIN; SELECT FROM idem_guard('guarded', token => $token)");
my $rival = q{SELECT outcome, attempt FROM idem_claim('guarded', lease => '1 h', wait => '0')};
is($node->safe_psql('postgres', $rival), 'in_progress|',
	'a guard holds off a takeover of a lease that has run out');
is($node->safe_psql('postgres', $rival =~ s/'0'/'20 ms'/r), 'in_progress|',
	'however long one waits');
$holder->query_safe('COMMIT');
is($node->safe_psql('postgres', $rival), 'claimed|2', 'until its transaction ends');
for my $command (
	"idem_finish('guarded', token => $token)",
	"idem_fail('guarded', token => $token)",
	"idem_release('guarded', token => $token)",
	"idem_renew('guarded', '1 h', token => $token)",
	"idem_guard('guarded', token => $token)")
{
	my ($out, $err);
	$node->psql('postgres', "\\set VERBOSITY sqlstate\nSELECT FROM $command",
		stdout => \$out, stderr => \$err);
	like($err, qr/ERROR:  ID003$/, 'then stale: ' . $command =~ s/\d{5,}/.../r);
}
$holder->quit;
$node->safe_psql('postgres', q{SELECT idem_forget('guarded')});

# All at once. A worker that lost its connection is replaced by another.

my ($started, $terminated, $killed) = (0, 0, 0);
my @client = map { { name => 'job ' . int($_ / 2) } } 1 .. $workers;
my $deadline = time + $seconds;

sub start_client
{
	my ($client) = @_;
	my $left = $deadline - time;
	local $ENV{PGAPPNAME} = 'fence';

	$client->{out} = '';
	$client->{run} = IPC::Run::start(
		[
			'psql', '-XAtq', '-h', $node->host, '-p', $node->port, '-d', 'postgres',
			'-c', "CALL worker('$client->{name}', $left)"
		],
		'<', \'', '>', \$client->{out}, '2>', \$client->{out});
	$started++;
	return;
}

my $next_terminate = time + $terminate_every;
my $next_kill = time + $kill_every / 2;
while (time < $deadline)
{
	for my $client (@client)
	{
		if ($client->{run})
		{
			$client->{run}->pump_nb;
			next if $client->{run}->pumpable;
			$client->{run}->finish;
		}
		start_client($client);
	}
	if (time >= $next_kill)
	{
		$next_kill = time + $kill_every;
		my $pid = ask($node, q{
			SELECT pid FROM pg_stat_activity WHERE application_name = 'fence'
			 ORDER BY random() LIMIT 1});
		$killed += kill 'KILL', $pid if ($pid // '') =~ /^\d+$/;
	}
	elsif (time >= $next_terminate)
	{
		$next_terminate = time + $terminate_every;
		my $done = ask($node, q{
			SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			 WHERE application_name = 'fence' ORDER BY random() LIMIT 1});
		$terminated++ if ($done // '') eq 't';
		ask($node, 'SELECT idem_expire()');
	}
	sleep 0.02;
}
for my $client (@client)
{
	$client->{run}->finish if $client->{run};
}
ok(wait_for($node, q{
	SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'fence'}),
	'all workers are done');

my $count = sub { $node->safe_psql('postgres', "SELECT count(*) FROM $_[0]") };

# A claim is stale if there is a later one of its key.
$node->safe_psql('postgres', q{
	CREATE VIEW stale AS
	SELECT * FROM claim AS c
	 WHERE EXISTS (SELECT FROM claim AS d WHERE d.key = c.key AND d.id > c.id)});

note "$seconds s, $workers workers: ", $count->('claim'), ' claims of ',
  $count->('(SELECT DISTINCT key FROM claim) AS k'), ' keys, ',
  $count->('stale'), ' of them stale, ',
  $count->('effect'), ' effects (', $count->(q{tally WHERE what = 'transactional'}),
  ' without a lease), ', $count->('mark'), ' guarded marks; refused: ',
  $node->safe_psql('postgres', q{
	SELECT coalesce(string_agg(n || ' ' || what, ', ' ORDER BY what), 'none')
	  FROM (SELECT what, count(*) AS n FROM refused GROUP BY what) AS r}),
  "; $terminated backends terminated, $killed killed, $started workers started";

is($count->('(SELECT key FROM effect GROUP BY key HAVING count(*) > 1) AS x'), 0,
	'no key has two committed effects');
is($count->('effect JOIN stale ON stale.id = effect.claim'), 0,
	'no stale holder has committed one');
is($count->('claim AS c WHERE marks <> (SELECT count(*) FROM mark AS m
	WHERE m.key = c.key AND m.claim < c.id)'), 0,
	'nor anything under a guard after the takeover');
is($count->('mark AS m LEFT JOIN claim AS c ON c.id = m.claim WHERE c.id IS NULL'), 0,
	'every mark is that of a committed claim');
is($count->('refused AS r LEFT JOIN stale AS s ON s.id = r.claim WHERE s.id IS NULL'), 0,
	'whoever was refused was stale');
is($count->(q{effect AS e FULL JOIN (SELECT * FROM idem_key WHERE state = 'f') AS k USING (key)
	WHERE e.response IS DISTINCT FROM k.response}), 0,
	'effects and finished records match one to one');

# Each stale token once more, on all that it was for; then what nobody has
# finished, and again.

$node->safe_psql('postgres', q{
	CREATE FUNCTION answer(command text) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
		EXECUTE command;
		RETURN '00000';
	EXCEPTION WHEN OTHERS THEN
		RETURN sqlstate;
	END $$;
	CREATE VIEW answers AS
	SELECT s.key, what, answer(format('SELECT %s(%L, %s token => %s)', what, s.key,
			CASE what WHEN 'idem_renew' THEN $$'1 h',$$ ELSE '' END, s.token)) AS code
	  FROM stale AS s,
		   unnest('{idem_finish,idem_fail,idem_release,idem_renew,idem_guard}'::text[]) AS what
	 WHERE s.token IS NOT NULL;
});
is($count->(q{answers WHERE code <> 'ID003'}), 0,
	'every stale token is refused with ID003, whatever it is used for');
$node->safe_psql('postgres', q{
	UPDATE idem_key SET lease_until = clock_timestamp() WHERE state = 'p';
	DO $$
	DECLARE
		k text;
		c record;
	BEGIN
		FOR k IN SELECT DISTINCT key FROM claim EXCEPT SELECT key FROM effect LOOP
			SELECT * INTO STRICT c FROM idem_claim(k, lease => '1 h');
			PERFORM work(note_claim(k, c.attempt, c.token), k, c.token);
		END LOOP;
	END $$});
is($count->('effect'), $count->('(SELECT DISTINCT key FROM claim) AS k'),
	'whatever was left can be done: an effect for every key');
is($count->(q{answers WHERE code <> 'ID003'}), 0,
	'and every stale token is still refused');
is($count->('(SELECT key FROM effect GROUP BY key HAVING count(*) <> 1) AS x'), 0,
	'each was done once');
is($count->(q{claim AS c WHERE attempt > 1 AND NOT EXISTS (SELECT FROM claim AS d
	WHERE d.key = c.key AND d.attempt = c.attempt - 1)}), 0, 'no attempt is missing');
is($count->(q{(SELECT token FROM claim WHERE token IS NOT NULL
	GROUP BY token HAVING count(*) > 1) AS x}), 0, 'no token was given twice');
is($count->(q{pg_locks WHERE locktype = 'advisory'}), 0, 'no lock is left');

# Nothing went wrong but what has to.
my (%seen, %strange);
my $log = slurp_file($node->logfile);
while ($log =~ /SQLSTATE=(\w+) (ERROR|FATAL|PANIC|WARNING):  (.*)/g)
{
	$seen{$1}++;
	# terminated, server restarting, serialization
	$strange{"$1 $3"}++ unless $1 =~ /^(57P0[123]|40001|40P01|ID003)$/;
}
note join ', ', map { "$_: $seen{$_}" } sort keys %seen;
is(join("\n", sort keys %strange), '', 'no other error');
unlike($log, qr/TRAP|PANIC|terminated by signal (?!9)/, 'the server did not crash by itself');

$node->stop;
done_testing();
