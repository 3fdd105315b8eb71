# Whoever waits for a message is woken by the commit that brings one, long before
# he would have looked again by himself; and he who is woken in vain, or is
# terminated while he waits, does no harm. Without shared memory a message arrives
# all the same.
#
# A consumer looks again after pauses that double up to a quarter of a second: about
# 254, 504 and 754 ms after he has begun. So each round lets him wait until he has
# gone to sleep for the third of these, and then has something come. If nobody woke
# him, he would get it 200 ms later.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);

my $rounds = 5;
my $soon = 0.1;					# in seconds

my $node = PostgreSQL::Test::Cluster->new('awake');
$node->init;
$node->append_conf('postgresql.conf', <<'EOT');
shared_preload_libraries = 'idempotency'
idempotency.janitor_interval = 0
statement_timeout = '120s'
autovacuum = off
EOT
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION idempotency;

	-- until a backend sleeps in a call that it has begun at least so long ago
	CREATE PROCEDURE see_it_sleep(pid int, span interval) LANGUAGE plpgsql AS $$
	BEGIN
		LOOP
			EXIT WHEN (SELECT a.wait_event_type = 'Extension'
							  AND clock_timestamp() - a.query_start > span
						 FROM pg_stat_activity AS a
						WHERE a.pid = see_it_sleep.pid);
			PERFORM pg_sleep(0.002);
			COMMIT;
		END LOOP;
	END $$;
});

sub session
{
	my ($server) = @_;
	my $session = $server->background_psql('postgres', on_error_stop => 0);

	$session->set_query_timer_restart;
	return $session;
}

# Has a session begin something that takes a while, and wait for its end.
sub begin
{
	my ($session, $command) = @_;

	$session->query_until(qr/begun\n/, "\\echo begun\n$command;\n\\echo ended\n");
	return;
}

sub end
{
	my ($session) = @_;

	pump_until($session->{run}, $session->{timeout}, \$session->{stdout}, qr/ended\n/)
	  or die 'nothing came';
	my $answer = $session->{stdout} =~ s/\n?ended\n.*//sr;
	$session->{stdout} = '';
	return $answer;
}

my $consumer = session($node);
my $producer = session($node);
my $pid = $consumer->query_safe('SELECT pg_backend_pid()');

my $take = q{SELECT id, token FROM idem_dequeue('q', lease => '1 h', wait => '30 s')};
my $await = q{CALL idem_await('q', '30 s')};

# Rounds of: something is prepared, the consumer waits, and what he waits for
# happens. $before is what to prepare with, and $event is what happens, both SQL;
# %ID and %TOKEN are those of the message that $before has taken.
sub wakes
{
	my ($name, $wait, $before, $event) = @_;
	my @taken;

	for (1 .. $rounds)
	{
		my ($id, $token) = split /\|/, $producer->query_safe($before) =~ s/^.*\n//sr;
		my $command = $event;

		$command =~ s/%ID/$id/g if defined $id;
		$command =~ s/%TOKEN/$token/g if defined $token;
		begin($consumer, $wait);
		$producer->query_safe("CALL see_it_sleep($pid, '520 ms')");
		my $since = clock_gettime(CLOCK_MONOTONIC);
		$producer->query_safe($command);
		my $answer = end($consumer);
		push @taken, clock_gettime(CLOCK_MONOTONIC) - $since;

		$answer = $consumer->query_safe($take) if $wait eq $await;
		my ($came) = $answer =~ /^(\d+)\|/;
		BAIL_OUT("$name: $answer") if !defined $came;
		$node->safe_psql('postgres', q{
			SELECT idem_ack(id, token) FROM idem_message WHERE token <> 0});
	}
	@taken = sort { $a <=> $b } @taken;
	note "$name: ", join ' ', map { sprintf '%.0f', 1000 * $_ } @taken;
	cmp_ok($taken[$rounds / 2], '<', $soon, "$name: woken");
	return;
}

my $taken = q{SELECT id, token FROM idem_dequeue('q', lease => '1 h')};
for my $how ([ 'idem_dequeue', $take ], [ 'idem_await', $await ])
{
	my ($name, $wait) = @$how;

	wakes("$name, a message", $wait, 'SELECT 1', q{SELECT idem_enqueue('q', '1')});
	wakes("$name, the next one of a group", $wait,
		qq{SELECT idem_enqueue_many('q', '{1,2}', message_groups => '{g,g}'); $taken},
		q{SELECT idem_ack(%ID, %TOKEN)});
}
wakes('a message given back', $take, qq{SELECT idem_enqueue('q', '1'); $taken},
	q{SELECT idem_nack(%ID, %TOKEN, retry_in => '0')});
wakes('a message redriven', $take,
	qq{SELECT idem_enqueue('q', '1');
	   SELECT idem_nack(id, token, final => true) FROM idem_dequeue('q')},
	q{SELECT idem_redrive('q')});
wakes('a group after one that died', $take,
	qq{SELECT idem_enqueue_many('q', '{1,2}', message_groups => '{g,g}'); $taken},
	q{SELECT idem_nack(%ID, %TOKEN, final => true)});
$node->safe_psql('postgres', q{SELECT idem_purge('q', dead_letters => true)});
wakes('many queues in one transaction', $take, 'SELECT 1', q{
	SELECT FROM generate_series(1, 40) AS i, idem_enqueue('other ' || i, '1');
	SELECT idem_enqueue('q', '1')} =~ s/^/BEGIN;/r . '; COMMIT');
$node->safe_psql('postgres', q{SELECT idem_purge('other ' || i) FROM generate_series(1, 40) AS i});

# What it holds while it sleeps.

my $held = qq{
	SELECT backend_xmin IS NULL, backend_xid IS NULL, state FROM pg_stat_activity WHERE pid = $pid};
for my $way ([ 'idem_await', $await, 't|t|active' ], [ 'idem_dequeue', $take, 'f|t|active' ])
{
	my ($name, $wait, $expected) = @$way;

	begin($consumer, $wait);
	$producer->query_safe("CALL see_it_sleep($pid, '520 ms')");
	is($node->safe_psql('postgres', $held), $expected,
		"$name holds " . ($expected =~ /^t/ ? 'no snapshot' : 'a snapshot'));
	$producer->query_safe(q{SELECT idem_enqueue('q', '1')});
	end($consumer);
	$node->safe_psql('postgres', q{SELECT idem_purge('q')});
}
$node->safe_psql('postgres', 'UPDATE idem_message SET lease_until = clock_timestamp()');
$node->safe_psql('postgres', q{SELECT idem_purge('q')});
is($node->safe_psql('postgres', 'SELECT count(*) FROM idem_message'), 0, 'the queue is empty');

# VACUUM is not kept from anything by idem_await.

begin($consumer, $await);
$producer->query_safe("CALL see_it_sleep($pid, '0')");
$producer->query_safe(q{
	CREATE TABLE rubbish AS SELECT generate_series(1, 10) AS i;
	DELETE FROM rubbish;
	VACUUM rubbish});
is($node->safe_psql('postgres', q{SELECT pg_relation_size('rubbish')}), 0,
	'VACUUM removes what died while somebody waits');
$producer->query_safe(q{SELECT idem_enqueue('q', '1')});
end($consumer);

# Woken in vain.

is($consumer->query_safe($take) =~ /^\d+\|/, 1, 'the message is there');
begin($consumer, $take);
$producer->query_safe("CALL see_it_sleep($pid, '0')");
$producer->query_safe(q{
	BEGIN;
	SAVEPOINT s;
	SELECT idem_enqueue('q', '1');
	ROLLBACK TO s;
	COMMIT;
	BEGIN;
	SELECT idem_enqueue('q', '1');
	ROLLBACK;
	SELECT idem_enqueue('another', '1');
	BEGIN;
	SELECT idem_enqueue('q', '"late"', delay => '1 h');
	COMMIT});
$producer->query_safe("SELECT pg_log_backend_memory_contexts($pid)") for 1 .. 3;
$producer->query_safe("CALL see_it_sleep($pid, '1 s')");
is($consumer->{stdout}, '', 'who is woken in vain goes on waiting');
my $id = $producer->query_safe(q{SELECT idem_enqueue('q', '"true"')});
like(end($consumer), qr/^$id\|/, 'until there is something');

# Who has counted nothing so far, and does so while he waits: a message dies.

$producer->query_safe(q{SELECT idem_enqueue('q', '1', max_attempts => 1)});
$producer->query_safe(q{SELECT FROM idem_dequeue('q', lease => '2 s')});
my $newcomer = session($node);
begin($newcomer, $take);
ok($node->poll_query_until('postgres', q{
	SELECT count(*) = 1 FROM idem_message WHERE lease_until BETWEEN '2000-01-01' AND clock_timestamp() - interval '0.5 s'}),
	'a message can be taken no more');
$id = $producer->query_safe(q{SELECT idem_enqueue('q', '2')});
like(end($newcomer), qr/^$id\|/, 'and the next one is taken');
$newcomer->quit;
is($producer->query_safe(q{SELECT idem_purge('q', dead_letters => true)}), 1, 'it had died meanwhile');

# Two consumers are woken by one message: one of them gets it.

my $second = session($node);
my $second_pid = $second->query_safe('SELECT pg_backend_pid()');
begin($_, $take) for $consumer, $second;
$producer->query_safe("CALL see_it_sleep($_, '0')") for $pid, $second_pid;
$producer->query_safe(q{SELECT idem_enqueue('q', '1')});
ok($node->poll_query_until('postgres', qq{
	SELECT count(*) = 1 FROM pg_stat_activity
	 WHERE pid IN ($pid, $second_pid) AND state = 'active'}), 'one of two gets the message');
$producer->query_safe(q{SELECT idem_enqueue('q', '2')});
isnt(end($consumer), end($second), 'the other one gets the next');

# Terminated while he waits, by an error, and by the end of his session.

for my $wait ($take, $await)
{
	my $victim = session($node);
	my $victim_pid = $victim->query_safe('SELECT pg_backend_pid()');

	begin($victim, $wait);
	$producer->query_safe("CALL see_it_sleep($victim_pid, '0')");
	$producer->query_safe("SELECT pg_cancel_backend($victim_pid)");
	is(end($victim), '', 'cancelled while it waits');
	begin($victim, $wait);
	$producer->query_safe("CALL see_it_sleep($victim_pid, '0')");
	$producer->query_safe("SELECT pg_terminate_backend($victim_pid)");
	ok($node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $victim_pid"),
		'terminated while it waits');
	eval { $victim->quit };
	$producer->query_safe(q{SELECT idem_enqueue('q', '1')});
	like($consumer->query_safe($take), qr/^\d+\|/, 'what comes then is for others');
}
wakes('after all that', $take, 'SELECT 1', q{SELECT idem_enqueue('q', '1')});
$_->quit for $consumer, $second, $producer;
$node->stop;

# Without preload, which before PostgreSQL 17 is without shared memory.

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->start;
$consumer = session($node);
$producer = session($node);
$pid = $consumer->query_safe('SELECT pg_backend_pid()');
for my $wait ($take, $await)
{
	begin($consumer, $wait);
	$producer->query_safe("CALL see_it_sleep($pid, '520 ms')");
	$id = $producer->query_safe(q{SELECT idem_enqueue('q', '1')});
	my $answer = end($consumer);
	$answer = $consumer->query_safe($take) if $wait eq $await;
	like($answer, qr/^$id\|/, 'not preloaded: it arrives');
}
$_->quit for $consumer, $producer;
$node->stop;

done_testing();
