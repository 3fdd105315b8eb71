# A streaming standby: what is known of a key can be looked up there, nothing
# can be claimed. After its promotion a finished key is replayed, a key that was
# being worked on is free, and a step that was committed is done. Queues can be
# looked at, and nothing can be taken; after the promotion messages are there, and
# those who have some have them still.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1);
$primary->append_conf('postgresql.conf', <<'EOT');
max_prepared_transactions = 10
statement_timeout = '120s'
EOT
$primary->start;
$primary->safe_psql('postgres', q{
	CREATE EXTENSION idempotency;
	CREATE TABLE effect (key text);
});
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

# One key in every state.
$primary->safe_psql('postgres', q{
	BEGIN;
	SELECT FROM idem_claim('done', request => '[1]');
	INSERT INTO effect VALUES ('done');
	SELECT idem_finish('done', '{"id": 1}');
	COMMIT;
	SELECT idem_finish('short') FROM idem_claim('short', ttl => '1 ms');
	BEGIN;
	SELECT FROM idem_claim('prepared');
	INSERT INTO effect VALUES ('prepared');
	SELECT idem_finish('prepared', '{"id": 2}');
	PREPARE TRANSACTION 'p';
	BEGIN;
	SELECT FROM idem_claim('flow');
	SELECT idem_step_finish('flow', 'order', '{"order": 7}');
	SELECT idem_step_finish('flow', 'mail');
	SELECT idem_finish('flow', '"all"');
	COMMIT;
});

# A flow that is under way: two steps are committed, the third is not.
my $token = $primary->safe_psql('postgres',
	q{SELECT token FROM idem_claim('under way', lease => '1 h')});
$primary->safe_psql('postgres', qq{
	SELECT idem_step_finish('under way', 'order', '{"order": 8}', token => $token, request => '[1]');
	SELECT idem_step_finish('under way', 'charge', token => $token)});
my $step = $primary->background_psql('postgres', on_error_stop => 0);
$step->query_safe(qq{
	BEGIN;
	SELECT idem_step_finish('under way', 'mail', token => $token)});
my $pending = $primary->background_psql('postgres', on_error_stop => 0);
$pending->query_safe(q{
	BEGIN;
	INSERT INTO effect VALUES ('pending');
	SELECT FROM idem_claim('pending')});
my $finished = $primary->background_psql('postgres', on_error_stop => 0);
$finished->query_safe(q{
	BEGIN;
	INSERT INTO effect VALUES ('finished');
	SELECT FROM idem_claim('finished');
	SELECT idem_finish('finished', '{"id": 3}')});
# Messages: one out on lease, one that waits, one that is dead, one of a transaction
# that is not over, and one that is just being taken.
my ($id, $delivery) = split /\|/, $primary->safe_psql('postgres', q{
	SELECT idem_configure_queue('q', max_attempts => 7);
	SELECT FROM idem_enqueue('q', '"leased"', key => 'leased');
	SELECT FROM idem_enqueue('q', '"waits"', key => 'waits');
	SELECT FROM idem_enqueue('dead', '"dead"');
	SELECT FROM idem_enqueue('taking', '"taking"');
	SELECT FROM (SELECT idem_nack(id, token, '"error"', final => true) FROM idem_dequeue('dead')) AS x;
	SELECT id, token FROM idem_dequeue('q', lease => '1 h')}) =~ s/^\s+//r;
my $enqueuing = $primary->background_psql('postgres', on_error_stop => 0);
$enqueuing->query_safe(q{
	BEGIN;
	SELECT FROM idem_enqueue('q', '"not committed"', key => 'not committed')});
my $taking = $primary->background_psql('postgres', on_error_stop => 0);
$taking->query_safe(q{
	BEGIN;
	SELECT FROM idem_dequeue('taking', lease => '1 h')});
# flushes what those have written so far
$primary->safe_psql('postgres', q{INSERT INTO effect VALUES ('other')});
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('flush'));

is($standby->safe_psql('postgres', q{
	SELECT state, response, attempt, claimed_at <= finished_at,
		   expires_at - finished_at = '24 hours'
	  FROM idem_lookup('done')}),
	'finished|{"id": 1}|1|t|t', 'a finished key is seen on the standby');
for my $key ('short', 'prepared', 'pending', 'finished', 'never')
{
	is($standby->safe_psql('postgres', "SELECT * FROM idem_lookup('$key')"),
		'', "$key: nothing to be seen");
}
my $steps = q{SELECT step, result, attempt FROM idem_steps};
is($standby->safe_psql('postgres', "$steps('flow')"), qq(order|{"order": 7}|1\nmail||1),
	'the steps of a finished key are seen on the standby');
is($standby->safe_psql('postgres', q{SELECT state, response FROM idem_lookup('flow')}),
	'finished|"all"', 'and the key');
is($standby->safe_psql('postgres', "$steps('under way')"), qq(order|{"order": 8}|1\ncharge||1),
	'the steps of a flow that is under way: those that are committed');
is($standby->safe_psql('postgres', q{
	SELECT state, lease_until > clock_timestamp() FROM idem_lookup('under way')}),
	'in_progress|t', 'and its lease');
is($standby->safe_psql('postgres', "$steps('done'); $steps('never')"), '',
	'no steps of keys that have none');
is($standby->safe_psql('postgres', qq{
	BEGIN ISOLATION LEVEL REPEATABLE READ;
	$steps('flow');
	COMMIT;}), qq(order|{"order": 7}|1\nmail||1), 'steps under REPEATABLE READ');
is($standby->safe_psql('postgres', q{
	BEGIN ISOLATION LEVEL REPEATABLE READ;
	SELECT state FROM idem_lookup('done');
	COMMIT;}), 'finished', 'a lookup under REPEATABLE READ');
my $messages = q{SELECT queue, state, attempt, payload FROM idem_messages ORDER BY id};
is($standby->safe_psql('postgres', $messages),
	qq(q|in_flight|1|"leased"\nq|ready|0|"waits"\ntaking|ready|0|"taking"),
	'idem_messages works on the standby, and shows what is committed');
is($standby->safe_psql('postgres', q{SELECT queue, attempt, last_error, payload FROM idem_dead_letters}),
	'dead|1|"error"|"dead"', 'so does idem_dead_letters');
is($standby->safe_psql('postgres', q{
	SELECT queue, ready, in_flight, delayed, retrying, dead FROM idem_queues ORDER BY queue}),
	"dead|0|0|0|0|1\nq|1|1|0|0|0\ntaking|1|0|0|0|0", 'and idem_queues');
is($standby->safe_psql('postgres', 'SELECT state, key FROM idem_in_flight'),
	'in_progress|under way', 'idem_in_flight works, and shows the lease');

for my $command (
	q{SELECT * FROM idem_claim('done')},
	q{SELECT * FROM idem_claim('new', wait => '0')},
	q{SELECT * FROM idem_claim_many('{done,new}')},
	q{SELECT * FROM idem_finish_many('{done}')},
	q{SELECT * FROM idem_once('done', 'SELECT 1')},
	q{SELECT * FROM idem_once('new', 'SELECT 1')},
	q{SELECT * FROM idem_step('flow', 'order')},
	qq{SELECT * FROM idem_step('under way', 'order', token => $token)},
	q{SELECT idem_step_finish('flow', 'order')},
	qq{SELECT idem_step_finish('under way', 'mail', token => $token)},
	q{SELECT idem_finish('done')},
	q{SELECT idem_release('done')},
	q{SELECT idem_forget('done')},
	q{SELECT idem_enqueue('q', '1')},
	q{SELECT idem_enqueue('q', '1', key => 'waits')},
	q{SELECT * FROM idem_enqueue_many('q', '{1}')},
	q{SELECT * FROM idem_receive('s', '1', '1', 'q')},
	q{SELECT * FROM idem_dequeue('q')},
	q{SELECT * FROM idem_dequeue('nothing', wait => '10 s')},
	q{CALL idem_await('q')},
	"SELECT idem_ack($id, $delivery)",
	"SELECT idem_nack($id, $delivery)",
	"SELECT idem_extend($id, $delivery)",
	q{SELECT idem_redrive('dead')},
	q{SELECT idem_purge('q')},
	q{SELECT idem_configure_queue('q')},
	q{SELECT idem_expire()})
{
	my ($status, $out, $err);
	$status = $standby->psql('postgres', "\\set VERBOSITY sqlstate\n$command",
		stdout => \$out, stderr => \$err);
	is($status, 3, "standby: $command fails");
	like($err, qr/ERROR:  25006$/, 'with 25006');
}
my $session = $standby->background_psql('postgres', on_error_stop => 0);
$session->query(q{SELECT * FROM idem_claim('before')});
$session->{stderr} = '';
is($session->query_safe(q{SELECT state FROM idem_lookup('done')}), 'finished',
	'a session on the standby goes on after that');

# The primary is lost, the standby takes over.
$primary->stop('immediate');
$standby->promote;

is($session->query(q{SELECT outcome, response FROM idem_claim('done', request => '[1]')}),
	'replayed|{"id": 1}', 'that session replays after the promotion');
$session->quit;
is($standby->safe_psql('postgres', qq{
	SELECT done, result FROM idem_step('under way', 'order', token => $token, request => '[1]');
	SELECT done, result FROM idem_step('under way', 'charge', token => $token);
	SELECT done, result FROM idem_step('under way', 'mail', token => $token)}),
	qq(t|{"order": 8}\nt|\nf|), 'steps are done after the promotion if they were committed before');
is($standby->safe_psql('postgres', q{
	UPDATE idem_key SET lease_until = clock_timestamp() WHERE key = 'under way';
	BEGIN;
	SELECT outcome, attempt FROM idem_claim('under way');
	SELECT done, result FROM idem_step('under way', 'order', request => '[1]');
	SELECT done, result FROM idem_step('under way', 'charge');
	SELECT done, result FROM idem_step('under way', 'mail');
	SELECT idem_step_finish('under way', 'mail', '"late"');
	SELECT idem_finish('under way', '"done"');
	COMMIT;}),
	qq(claimed|2\nt|{"order": 8}\nt|\nf|\n"late"\n"done"), 'also for who takes over');
is($standby->safe_psql('postgres', "$steps('under way')"),
	qq(order|{"order": 8}|1\ncharge||1\nmail|"late"|2), 'all steps, in order');
{
	my ($out, $err);
	$standby->psql('postgres', qq{
		\\set VERBOSITY sqlstate
		SELECT * FROM idem_step('under way', 'order', token => $token)},
		stdout => \$out, stderr => \$err);
	like($err, qr/ERROR:  ID003$/, 'the former holder is refused');
}
is($standby->safe_psql('postgres',
	q{SELECT outcome FROM idem_claim('done', request => '[2]')}),
	'mismatch', 'with the fingerprint');
for my $key ('pending', 'finished', 'short')
{
	is($standby->safe_psql('postgres', qq{
		BEGIN;
		SELECT outcome FROM idem_claim('$key', wait => '0');
		INSERT INTO effect VALUES ('$key');
		SELECT idem_finish('$key', '{"id": 4}');
		COMMIT;}),
		"claimed\n" . '{"id": 4}', "$key: free after the promotion");
	is($standby->safe_psql('postgres',
		qq{SELECT outcome, response FROM idem_claim('$key')}),
		'replayed|{"id": 4}', "$key: and replayed");
	is($standby->safe_psql('postgres',
		"SELECT count(*) FROM effect WHERE key = '$key'"),
		1, "$key: done once");
}
is($standby->safe_psql('postgres',
	q{SELECT outcome FROM idem_claim('prepared', wait => '0')}),
	'in_progress', 'a prepared transaction holds its key on the new primary');
is($standby->safe_psql('postgres', q{SELECT prepared FROM idem_in_flight}),
	'p', 'and is in idem_in_flight');
$standby->safe_psql('postgres', q{COMMIT PREPARED 'p'});
is($standby->safe_psql('postgres',
	q{SELECT outcome, response FROM idem_claim('prepared', wait => '0')}),
	'replayed|{"id": 2}', 'until it is committed');

# The queues, too.
is($standby->safe_psql('postgres', $messages),
	qq(q|in_flight|1|"leased"\nq|ready|0|"waits"\ntaking|ready|0|"taking"),
	'the messages are there after the promotion');
is($standby->safe_psql('postgres', q{SELECT max_attempts FROM idem_queue WHERE queue = 'q'}), 7,
	'and the configuration');
is($standby->safe_psql('postgres', q{SELECT payload, attempt FROM idem_dequeue('q', 10, '1 h')}),
	'"waits"|1', 'a lease holds: only what waits is taken');
is($standby->safe_psql('postgres', q{SELECT payload, attempt FROM idem_dequeue('taking', 10, '1 h')}),
	'"taking"|1', 'a delivery that was not committed never was');
is($standby->safe_psql('postgres', qq{
	SELECT idem_extend($id, $delivery, '2 h') > clock_timestamp() + interval '1 h';
	SELECT idem_ack($id, $delivery);
	SELECT idem_enqueue('q', '1', key => 'leased') = $id}), "t\n\nt", 'who has a message has it still, and its key');
is($standby->safe_psql('postgres', q{
	SELECT idem_enqueue('q', '"again"', key => 'not committed') > (SELECT max(id) FROM idem_message);
	SELECT payload FROM idem_dequeue('q')}), qq(t\n"again"),
	'a message that was not committed is enqueued anew, with a new id');
is($standby->safe_psql('postgres', q{
	SELECT idem_redrive('dead');
	SELECT payload, attempt FROM idem_dequeue('dead')}), qq(1\n"dead"|1), 'dead letters are redriven');

$standby->stop;
done_testing();
