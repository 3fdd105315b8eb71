# Consumers that die. Eight of them empty a queue: some in one transaction with the
# effect, some by a lease that is committed first, and mostly long enough. Backends are
# terminated, some are killed, which takes the server down, and once it is stopped at
# once. No message is lost, none has two effects, those of a group have theirs in order,
# and the dead letters are those that nobody could handle, with their history.
#
# How long it lasts is a matter of counts: every round brings messages, and an accident
# when a part of them is done.

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Restart;
use Test::More;
use Time::HiRes qw(time sleep);

my $consumers = 8;
my $max_attempts = 4;
my $messages = 60;		# of a round
my $before = 20;		# so many of them are done before the accident

# What happens in each round.
my @accidents = (
	'in transaction', 'on lease', 'killed', 'in transaction', 'on lease',
	'stopped', 'in transaction', 'on lease', 'killed', 'on lease', 'in transaction');

my $node = PostgreSQL::Test::Cluster->new('queue');
$node->init;
$node->append_conf('postgresql.conf', <<'EOT');
restart_after_crash = on
lock_timeout = '30s'
idle_in_transaction_session_timeout = '60s'
log_line_prefix = '%m [%p] %a SQLSTATE=%e '
log_statement = none
EOT
$node->start;

# Messages of three groups, and of none; every fifteenth is poison. The others are tried
# until they succeed.
$node->safe_psql('postgres', qq{
	CREATE EXTENSION idempotency;
	CREATE TABLE sent (id int8 PRIMARY KEY, message_group text, poison boolean);
	CREATE TABLE effect (number bigserial, id int8);
	CREATE TABLE failed (id int8, attempt int);
	CREATE TABLE refused (id int8);

	CREATE PROCEDURE produce(n int) LANGUAGE plpgsql AS \$\$
	DECLARE
		poison boolean;
		in_group text;
	BEGIN
		FOR i IN 1 .. n LOOP
			poison := i % 15 = 0;
			in_group := CASE WHEN i % 2 = 0 THEN 'group ' || i % 3 END;
			INSERT INTO sent SELECT idem_enqueue('q', to_jsonb(poison), message_group => in_group,
				max_attempts => CASE WHEN poison THEN $max_attempts ELSE 0 END), in_group, poison;
		END LOOP;
		COMMIT;
		-- others that are not to be seen
		PERFORM idem_enqueue('q', 'false', message_group => 'group 0') FROM generate_series(1, 5);
		ROLLBACK;
	END \$\$;

	-- The end of a delivery, one way or the other.
	CREATE FUNCTION handle(id int8, token int8, attempt int, poison boolean) RETURNS void
	LANGUAGE plpgsql VOLATILE AS \$\$
	BEGIN
		IF poison OR random() < 0.1 THEN
			INSERT INTO failed VALUES (id, attempt);
			PERFORM pg_sleep(random() * 0.01);
			PERFORM idem_nack(id, token, to_jsonb('attempt ' || attempt), retry_in => '5 ms');
		ELSE
			INSERT INTO effect (id) VALUES (id);
			PERFORM pg_sleep(random() * 0.02);
			PERFORM idem_ack(id, token);
		END IF;
	END \$\$;

	CREATE PROCEDURE consumer() LANGUAGE plpgsql AS \$\$
	DECLARE
		m record;
	BEGIN
		WHILE EXISTS (SELECT FROM idem_message) LOOP
			IF random() < 0.5 THEN
				-- all in one transaction
				SELECT * INTO m FROM idem_dequeue('q', wait => '20 ms');
				IF m.id IS NOT NULL THEN
					PERFORM handle(m.id, m.token, m.attempt, m.payload::boolean);
				END IF;
				COMMIT;
			ELSE
				-- or the lease first, and away for longer than that now and then
				SELECT * INTO m FROM idem_dequeue('q', lease => '60 ms', wait => '20 ms');
				COMMIT;
				CONTINUE WHEN m.id IS NULL;
				PERFORM pg_sleep(random() * 0.08);
				COMMIT;
				BEGIN
					IF random() < 0.5 THEN
						PERFORM idem_extend(m.id, m.token, '60 ms');
					END IF;
					PERFORM handle(m.id, m.token, m.attempt, m.payload::boolean);
				EXCEPTION WHEN SQLSTATE 'ID003' THEN
					INSERT INTO refused VALUES (m.id);
				END;
				COMMIT;
			END IF;
		END LOOP;
	END \$\$;
});

# A consumer that lost its connection, or found nothing, is replaced by another.

my $started = 0;
my @client = map { {} } 1 .. $consumers;

sub keep_running
{
	for my $client (@client)
	{
		if ($client->{run})
		{
			$client->{run}->pump_nb;
			next if $client->{run}->pumpable;
			$client->{run}->finish;
		}
		local $ENV{PGAPPNAME} = 'consumer';
		$client->{out} = '';
		$client->{run} = IPC::Run::start(
			[ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', 'CALL consumer()' ],
			'<', \'', '>', \$client->{out}, '2>', \$client->{out});
		$started++;
	}
	return;
}

# Let them work until the query answers true.
sub work_until
{
	my ($query) = @_;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;

	while (time < $deadline)
	{
		keep_running();
		return 1 if (ask($node, $query) // '') eq 't';
		sleep 0.02;
	}
	return 0;
}

# One who is in the midst of a transaction that has written something, or one who is not.
sub victim
{
	my ($writes) = @_;
	my $order = $writes ? 'backend_xid IS NULL' : 'backend_xid IS NOT NULL';
	my $pid = ask($node, qq{
		SELECT pid FROM pg_stat_activity WHERE application_name = 'consumer'
		 ORDER BY $order, random() LIMIT 1});
	return ($pid // '') =~ /^\d+$/ ? $pid : undef;
}

# Returns whether it did.
sub happens
{
	my ($accident) = @_;

	if ($accident eq 'stopped')
	{
		$node->stop('immediate');
		$node->start;
		return 1;
	}
	my $pid = victim($accident ne 'on lease');
	return 0 unless $pid;
	return kill 'KILL', $pid if $accident eq 'killed';
	return (ask($node, "SELECT pg_terminate_backend($pid)") // '') eq 't' ? 1 : 0;
}

my %happened;
my $sent = 0;
my $begun = time;
for my $accident (@accidents)
{
	wait_for($node, 'SELECT true') or die 'the server does not come back';
	my $done = $node->safe_psql('postgres', 'SELECT count(*) FROM effect');
	$node->safe_psql('postgres', "CALL produce($messages)");
	$sent += $messages;
	work_until("SELECT count(*) >= $done + $before FROM effect")
	  or die 'the consumers do not get on';
	$happened{$accident} += happens($accident);
}
ok(work_until('SELECT NOT EXISTS (SELECT FROM idem_message)'), 'the queue gets empty');
for my $client (@client)
{
	$client->{run}->finish if $client->{run};
}
ok(wait_for($node, q{
	SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'consumer'}),
	'all consumers are done');

my $count = sub { $node->safe_psql('postgres', "SELECT count(*) FROM $_[0]") };

note int(time - $begun), " s, $consumers consumers: $sent messages, ",
  $count->('failed'), ' failures, ', $count->('refused'), ' refused, ',
  $count->('idem_dead_letter'), " dead letters; $started consumers started; ",
  join ', ', map { "$happened{$_} $_" } sort keys %happened;
cmp_ok($happened{$_}, '>', 0, "it happened: $_") for sort keys %happened;

is($count->('sent'), $sent, 'all were sent');
is($count->('sent WHERE NOT poison AND id NOT IN (SELECT id FROM effect)'), 0,
	'nothing is lost');
is($count->('(SELECT id FROM effect GROUP BY id HAVING count(*) > 1) AS x'), 0,
	'no message has two effects');
is($count->('effect WHERE id NOT IN (SELECT id FROM sent WHERE NOT poison)'), 0,
	'no effect is of a message that was not sent, or is poison');
is($count->(q{(SELECT e.id, lag(e.id) OVER (PARTITION BY s.message_group ORDER BY e.number) AS earlier
	FROM effect AS e JOIN sent AS s USING (id) WHERE s.message_group IS NOT NULL) AS x
	WHERE earlier > id}), 0, 'the effects of a group are in its order');
is($count->('sent AS s FULL JOIN idem_dead_letter AS l USING (id)
	WHERE s.poison IS DISTINCT FROM (l.id IS NOT NULL)'), 0, 'the dead letters are the poison');
is($count->("idem_dead_letter WHERE attempt <> $max_attempts"), 0,
	'each of them was tried as often as it may be');
is($count->(qq{idem_dead_letter AS l WHERE ARRAY(SELECT (h->>'attempt')::int
		FROM jsonb_array_elements(history) WITH ORDINALITY AS e(h, n) ORDER BY n)
	<> ARRAY(SELECT generate_series(1, $max_attempts))}), 0, 'its history has all attempts, in order');
is($count->(q{failed AS f JOIN sent AS s USING (id) FULL JOIN
	(SELECT id, (h->>'attempt')::int AS attempt, h->>'error' AS error, h->>'lease' AS lease
	   FROM idem_dead_letter, jsonb_array_elements(history) AS e(h)) AS h USING (id, attempt)
	WHERE s.poison IS DISTINCT FROM false AND
		  CASE WHEN f.id IS NULL THEN h.lease IS DISTINCT FROM 'ran out'
			   ELSE h.error IS DISTINCT FROM 'attempt ' || attempt END}), 0,
	'with the errors of those that failed, and the leases of those that were not heard of again');
is($count->('(SELECT id, attempt FROM failed GROUP BY id, attempt HAVING count(*) > 1) AS x'), 0,
	'no attempt failed twice');
is($count->(q{pg_locks WHERE locktype = 'advisory'}), 0, 'no lock is left');

# Redriven, the poison is tried anew, as often, under the same ids.
is($node->safe_psql('postgres', q{SELECT idem_redrive('q')}), $count->('sent WHERE poison'),
	'all dead letters are redriven');
$node->safe_psql('postgres', 'CALL consumer()');
is($count->('sent AS s FULL JOIN idem_dead_letter AS l USING (id)
	WHERE s.poison IS DISTINCT FROM (l.id IS NOT NULL)'), 0, 'and die again');
is($count->("idem_dead_letter WHERE attempt <> $max_attempts
	OR jsonb_array_length(history) <> 2 * $max_attempts + 1"), 0, 'after as many attempts');

# Nothing went wrong but what has to.
my %strange;
my $log = slurp_file($node->logfile);
while ($log =~ /SQLSTATE=(\w+) (ERROR|FATAL|PANIC|WARNING):  (.*)/g)
{
	# terminated, server restarting
	$strange{"$1 $3"}++ unless $1 =~ /^57P0[123]$/;
}
is(join("\n", sort keys %strange), '', 'no other error');
unlike($log, qr/TRAP|PANIC|terminated by signal (?!9)/, 'the server did not crash by itself');

$node->stop;
done_testing();
