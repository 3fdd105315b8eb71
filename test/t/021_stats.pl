# idem_stats: each thing is counted once, at once, whatever becomes of the
# transaction, for its database, and beyond the end of the session that counted.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('counting');
$node->init;
$node->append_conf('postgresql.conf', <<'EOT');
shared_preload_libraries = 'idempotency'
idempotency.janitor_interval = 0
statement_timeout = '120s'
EOT
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION idempotency');

my $not_null = q{
	SELECT string_agg(key || ' ' || value, ', ' ORDER BY key COLLATE "C")
	  FROM (SELECT to_jsonb(s) - '{wait_time,stats_reset}'::text[] FROM idem_stats AS s) AS s (counters),
		   jsonb_each_text(counters)
	 WHERE value <> '0'};

# What a script has counted, as "name number" in the order of the names.
sub counted
{
	my ($script) = @_;

	$node->safe_psql('postgres', 'SELECT idem_stats_reset()');
	$node->safe_psql('postgres', $script);
	return $node->safe_psql('postgres', $not_null);
}

sub sqlstate
{
	my ($server, $command) = @_;
	my ($out, $err);

	$server->psql('postgres', "\\set VERBOSITY sqlstate\n$command",
		stdout => \$out, stderr => \$err);
	return $err =~ /ERROR:  (\w{5})/ ? $1 : 'none';
}

is($node->safe_psql('postgres', $not_null), '', 'nothing at first');
is($node->safe_psql('postgres', q{
	SELECT count(*), bool_and(wait_time = '0'),
		   bool_and(stats_reset BETWEEN pg_postmaster_start_time() AND clock_timestamp())
	  FROM idem_stats}), '1|t|t', 'in one row, which says since when');

# Claims.

is(counted(q{SELECT idem_finish('a', '1') FROM idem_claim('a', request => '[1]')}),
	'claimed 1, finishes 1', 'a claim and its finish');
is(counted(q{SELECT FROM idem_claim('a')}), 'replayed 1', 'a repeat');
is(counted(q{SELECT FROM idem_claim('a', request => '[2]')}), 'mismatch 1', 'a mismatch');
is(counted(q{SELECT FROM idem_lookup('a')}), '', 'a look is no claim');
is(counted(q{
	BEGIN;
	SELECT FROM idem_claim('b');
	SELECT FROM idem_claim('b');
	SELECT idem_release('b');
	COMMIT}), 'claimed 1, in_progress 1', 'claimed already by the transaction itself');
is(counted(q{
	BEGIN;
	SELECT FROM idem_claim('b');
	SELECT idem_finish('b');
	SELECT FROM idem_claim('c', wait => '0');
	SELECT FROM idem_claim('a');
	ROLLBACK}), 'claimed 2, finishes 1, replayed 1',
	'what was rolled back is counted');
is(counted(q{
	BEGIN;
	SAVEPOINT s;
	SELECT FROM idem_claim('b');
	ROLLBACK TO s;
	COMMIT}), 'claimed 1', 'also to a savepoint');
is(counted(q{
	SELECT idem_fail('f', retry_in => '1 h') FROM idem_claim('f');
	SELECT FROM idem_claim('f')}), 'claimed 1, failures 1, retry_later 1',
	'a failure that is to be retried');
is(counted(q{
	SELECT idem_fail('g', final => true) FROM idem_claim('g');
	SELECT FROM idem_claim('g');
	SELECT FROM idem_claim('g')}), 'claimed 1, failed 2, failures 1',
	'a failure for good');
is(counted(q{
	BEGIN;
	SELECT FROM idem_claim_many('{a,m,n,f,g,m}');
	SELECT FROM idem_finish_many('{m,n}');
	COMMIT}),
	'claimed 2, failed 1, finishes 2, in_progress 1, replayed 1, retry_later 1',
	'the keys of a batch');
is(counted(q{
	SELECT FROM idem_once('o', 'SELECT 1');
	SELECT FROM idem_once('o', 'SELECT 1')}), 'claimed 1, finishes 1, replayed 1',
	'one round trip');

# Leases.

is(counted(q{
	SELECT FROM idem_claim('h', lease => '1 h', takeover => 'hold');
	SELECT FROM idem_claim('h');
	UPDATE idem_key SET lease_until = clock_timestamp() WHERE key = 'h';
	SELECT FROM idem_claim('h')}), 'claimed 1, held 1, in_progress 1', 'a held key');
my $old = $node->safe_psql('postgres',
	q{SELECT token FROM idem_claim('t', lease => '1 h')});
is(counted(q{
	UPDATE idem_key SET lease_until = clock_timestamp() WHERE key = 't';
	SELECT FROM idem_claim('t', lease => '1 h')}), 'claimed 1, taken_over 1', 'a takeover');
for my $call ("idem_finish('t', token => $old)", "idem_fail('t', token => $old)",
	"idem_release('t', token => $old)", "idem_renew('t', '1 h', token => $old)",
	"idem_guard('t', token => $old)", "idem_step('t', 's', token => $old)",
	"idem_step_finish('t', 's', token => $old)")
{
	$node->safe_psql('postgres', 'SELECT idem_stats_reset()');
	my $shown = $call =~ s/token => .*/.../r;
	is(sqlstate($node, "SELECT FROM $call"), 'ID003', "stale: $shown");
	is($node->safe_psql('postgres', $not_null), 'stale 1', 'and counted');
}

# Waiting for another transaction.

my $holder = $node->background_psql('postgres');
my $waiter = $node->background_psql('postgres');
my $pid = $waiter->query_safe('SELECT pg_backend_pid()');
$node->safe_psql('postgres', 'SELECT idem_stats_reset()');
$holder->query_safe(q{BEGIN; SELECT FROM idem_claim('w'); SELECT idem_finish('w')});
$waiter->query_until(qr/start/, "\\echo start\nSELECT FROM idem_claim('w');\n");
ok($node->poll_query_until('postgres', "SELECT cardinality(pg_blocking_pids($pid)) > 0"),
	'a claim waits');
$holder->query_safe('COMMIT');
$waiter->query_safe('SELECT 1');
is($node->safe_psql('postgres', $not_null), 'claimed 1, finishes 1, replayed 1, waits 1',
	'a wait');
is($node->safe_psql('postgres', q{
	SELECT wait_time > '0', wait_time < clock_timestamp() - stats_reset FROM idem_stats}),
	't|t', 'and its time');
is(counted(q{
	SELECT FROM idem_claim('t', wait => '1 ms')}), 'in_progress 1, waits 1',
	'a wait for a lease, in vain');

# Expiry.

$node->safe_psql('postgres', q{
	SELECT idem_finish('e' || i) FROM generate_series(1, 5) AS i, idem_claim('e' || i, ttl => '1 ms');
	SELECT idem_configure_queue('short', dead_letter_ttl => '1 ms');
	SELECT idem_enqueue('short', '1');
	SELECT idem_nack(id, token, final => true) FROM idem_dequeue('short')});
ok($node->poll_query_until('postgres', q{
	SELECT max(expires_at) < clock_timestamp()
	  FROM (SELECT expires_at FROM idem_key WHERE key ~ '^e'
			UNION ALL SELECT expires_at FROM idem_dead_letter) AS e}), 'they expire');
is(counted('SELECT idem_expire(3); SELECT idem_expire()'), 'expired 6',
	'what was removed, dead letters too');

# Queues.

is(counted(q{
	SELECT idem_enqueue('q', '1', key => 'k');
	SELECT idem_enqueue('q', '1', key => 'k');
	SELECT FROM idem_enqueue_many('q', '{2,3}');
	SELECT * FROM idem_receive('s', 'id', '4');
	SELECT * FROM idem_receive('s', 'id', '4')}),
	'claimed 2, duplicates 2, enqueued 4, finishes 2, replayed 2',
	'messages in, and duplicates; their keys are claimed, too');
is(counted(q{
	SELECT FROM idem_dequeue('nothing');
	SELECT idem_ack(id, token) FROM idem_dequeue('q', 2)}), 'acked 2, dequeued 2', 'out');
is(counted(q{
	SELECT idem_nack(id, token, retry_in => '0') FROM idem_dequeue('q');
	SELECT idem_nack(id, token, final => true) FROM idem_dequeue('q');
	SELECT idem_redrive('q')}), 'dead 1, dequeued 2, nacked 2, redriven 1',
	'given back, dead, put back');
is(counted(q{
	SELECT idem_enqueue('x', '1', max_attempts => 1);
	SELECT FROM idem_dequeue('x');
	UPDATE idem_message SET lease_until = clock_timestamp() WHERE queue = 'x';
	SELECT FROM idem_dequeue('x')}), 'dead 1, dequeued 1, enqueued 1',
	'one that dies because nobody answers');
is(counted(q{
	SELECT idem_enqueue_many('y', '{1,2}');
	SELECT idem_ack_many(array_agg(id), array_agg(token)) FROM idem_dequeue('y', 2)}),
	'acked 2, dequeued 2, enqueued 2', 'many at once');
$node->safe_psql('postgres', 'SELECT idem_stats_reset()');
is(sqlstate($node, 'SELECT idem_ack(1, 2)'), 'ID003', 'a stale delivery');
is($node->safe_psql('postgres', $not_null), 'stale 1', 'is counted');

# Sessions that end, one way or another.

$node->safe_psql('postgres', 'SELECT idem_stats_reset()');
for my $session ($holder, $waiter)
{
	$session->query_safe(q{SELECT FROM idem_claim('a') AS c, generate_series(1, 3)});
}
is($node->safe_psql('postgres', $not_null), 'replayed 2', 'counted by sessions that live');
$holder->quit;
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok($node->poll_query_until('postgres', q{
	SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'client backend'}),
	'they end');
is($node->safe_psql('postgres', $not_null), 'replayed 2', 'counted nonetheless');
$node->safe_psql('postgres', q{SELECT FROM idem_claim('a')}) for 1 .. 3;
is($node->safe_psql('postgres', $not_null), 'replayed 5', 'and others add to it');
eval { $waiter->quit };

# Databases.

$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION idempotency');
is($node->safe_psql('other', $not_null), '', 'another database begins with nothing');
$node->safe_psql('other', q{SELECT idem_finish('a') FROM idem_claim('a')});
is($node->safe_psql('other', $not_null), 'claimed 1, finishes 1', 'has counters of its own');
is($node->safe_psql('postgres', $not_null), 'replayed 5', 'and leaves ours alone');

# Who may reset.

$node->safe_psql('postgres', q{
	CREATE ROLE clerk LOGIN;
	CREATE ROLE stranger LOGIN;
	GRANT EXECUTE ON FUNCTION idem_stats_reset() TO clerk});
is(sqlstate($node, 'SET ROLE stranger; SELECT idem_stats_reset()'), '42501',
	'a stranger may not reset');
is($node->safe_psql('postgres', 'SET ROLE stranger; SELECT replayed FROM idem_stats'), 5,
	'but see');
my $alive = $node->background_psql('postgres');
$alive->query_safe(q{SELECT FROM idem_claim('a')});
my $since = $node->safe_psql('postgres', 'SELECT stats_reset FROM idem_stats');
is(sqlstate($node, 'SET ROLE clerk; SELECT idem_stats_reset()'), 'none',
	'who was granted EXECUTE may');
is($node->safe_psql('postgres', $not_null), '', 'nothing is left, though a session lives');
is($node->safe_psql('postgres', "SELECT stats_reset > '$since' FROM idem_stats"), 't',
	'and says so');
$alive->query_safe(q{SELECT FROM idem_claim('a')});
is($node->safe_psql('postgres', $not_null), 'replayed 1', 'which counts on from there');
$alive->quit;
ok($node->poll_query_until('postgres', q{
	SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'client backend'}),
	'it ends');
is($node->safe_psql('postgres', $not_null), 'replayed 1', 'and passes on no more than that');
is($node->safe_psql('other', $not_null), 'claimed 1, finishes 1',
	'the other database was not reset');

$node->restart;
is($node->safe_psql('postgres', $not_null), '', 'a restart begins anew');
$node->stop;

# Without preload: from PostgreSQL 17 on there is shared memory all the same.

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->start;
my $late = $node->safe_psql('postgres', q{SELECT current_setting('server_version_num')::int >= 170000}) eq 't';
$node->safe_psql('postgres', q{SELECT FROM idem_claim('a')});
is($node->safe_psql('postgres', 'SELECT replayed FROM idem_stats'), $late ? 1 : '',
	'not preloaded: ' . ($late ? 'counted' : 'no row'));
is(sqlstate($node, 'SELECT idem_stats_reset()'), $late ? 'none' : '55000',
	'not preloaded: reset');
$node->stop;

done_testing();
