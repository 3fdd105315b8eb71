# pg_dump and pg_restore: what has been done stays done in another database, on
# another server, where roles have other OIDs, and a flow goes on there with the
# steps that it has done. So do queues, with what is out on lease. The secret does not
# travel.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $old = PostgreSQL::Test::Cluster->new('old');
$old->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
$old->start;
my $new = PostgreSQL::Test::Cluster->new('new');
$new->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
$new->start;

# The same roles, but not the same OIDs.
$old->safe_psql('postgres', 'CREATE ROLE filler');
for my $node ($old, $new)
{
	$node->safe_psql('postgres', q{
		CREATE ROLE "Ann's role" LOGIN;
		CREATE ROLE bob LOGIN;
		CREATE DATABASE shop});
}
my $oid = q{SELECT '"Ann''s role"'::regrole::oid};
isnt($old->safe_psql('postgres', $oid), $new->safe_psql('postgres', $oid),
	'roles have other OIDs on the new server');

my $schema = '"My Ext"';
$old->safe_psql('shop', qq{
	CREATE SCHEMA $schema;
	GRANT USAGE ON SCHEMA $schema TO PUBLIC;
	CREATE EXTENSION idempotency SCHEMA $schema;
	CREATE TABLE effect (key text, response jsonb);
	GRANT ALL ON effect TO PUBLIC;

	SET SESSION AUTHORIZATION "Ann's role";
	BEGIN;
	SELECT FROM $schema.idem_claim('k', request => '{"amount": 10.0}', scope => 's');
	INSERT INTO effect VALUES ('k', '{"by": "ann"}');
	SELECT $schema.idem_finish('k', '{"by": "ann"}', 's');
	COMMIT;
	SELECT $schema.idem_finish('nothing') FROM $schema.idem_claim('nothing');
	SELECT $schema.idem_finish('0ac2dcfc-9f0c-4c1c-8f1e-5d6c7b8a9012', '"uuid"')
	  FROM $schema.idem_claim('0ac2dcfc-9f0c-4c1c-8f1e-5d6c7b8a9012');
	SELECT $schema.idem_finish(E'\\n\\t\\\\"\\u00e4', 'null')
	  FROM $schema.idem_claim(E'\\n\\t\\\\"\\u00e4', ttl => '100 years');
	SET SESSION AUTHORIZATION bob;
	SELECT $schema.idem_finish('k', '{"by": "bob"}', 's')
	  FROM $schema.idem_claim('k', scope => 's');
});

# Flows: one that is finished, one that is under way, and one whose role goes.
$old->safe_psql('shop', qq{
	CREATE ROLE gone;
	SET SESSION AUTHORIZATION "Ann's role";
	BEGIN;
	SELECT FROM $schema.idem_claim('flow');
	SELECT $schema.idem_step_finish('flow', 'one', '{"n": 1}');
	SELECT $schema.idem_step_finish('flow', 'two');
	SELECT $schema.idem_finish('flow', '2');
	COMMIT;
	SET SESSION AUTHORIZATION bob;
	SELECT $schema.idem_step_finish('flow', E'\\t\\\\"\\u00e4', '{"n": 10.0}', request => '[1.0]', token => token)
	  FROM $schema.idem_claim('flow', lease => '1 h');
	SET SESSION AUTHORIZATION gone;
	SELECT $schema.idem_step_finish('flow', 'vanishes', token => token)
	  FROM $schema.idem_claim('flow', lease => '1 h');
	RESET SESSION AUTHORIZATION;
	DROP ROLE gone;
});

# Messages that wait, are out on lease, and have failed; a dead letter; and those of a
# role that goes.
my ($id, $token) = split /\|/, $old->safe_psql('shop', qq{
	CREATE ROLE gone;
	SET SESSION AUTHORIZATION "Ann's role";
	SELECT FROM (SELECT $schema.idem_configure_queue('q', max_attempts => 7, backoff_base => '2 s',
		jitter => 'none', dead_letter_ttl => '1 day', shared_with => '{bob}')) AS x;
	SELECT FROM $schema.idem_enqueue('failed', '"failed"', headers => '{"h": 10.0}');
	SELECT FROM (SELECT $schema.idem_nack(id, token, '{"n": 10.0}', '0') FROM $schema.idem_dequeue('failed')) AS x;
	SELECT FROM $schema.idem_enqueue('dead', '"dead"', message_group => 'g');
	SELECT FROM (SELECT $schema.idem_nack(id, token, '1', final => true) FROM $schema.idem_dequeue('dead')) AS x;
	SELECT FROM $schema.idem_enqueue('q', '"leased"', key => 'leased');
	SELECT FROM $schema.idem_enqueue('q', '"with key"', key => 'key');
	SELECT FROM $schema.idem_enqueue('q', '"one"', message_group => 'g');
	SELECT FROM $schema.idem_enqueue('q', '"two"', message_group => 'g');
	SET SESSION AUTHORIZATION gone;
	SELECT FROM $schema.idem_enqueue('q', '"orphan"');
	SELECT FROM (SELECT $schema.idem_configure_queue('q', max_attempts => 3)) AS x;
	SET SESSION AUTHORIZATION "Ann's role";
	SELECT id, token FROM $schema.idem_dequeue('q', lease => '1 h');
	RESET SESSION AUTHORIZATION;
	DROP ROLE gone}) =~ s/^\s+//r;
my $messages = "SELECT * FROM $schema.idem_message WHERE owner IN (SELECT oid FROM pg_roles) ORDER BY id";
my $letters = "SELECT * FROM $schema.idem_dead_letter ORDER BY id";
my $queues = "SELECT * FROM $schema.idem_queue WHERE owner IN (SELECT oid FROM pg_roles) ORDER BY owner::text, queue";
my $queue_before = $old->safe_psql('shop', "$messages; $letters; $queues");

# What comes out of the queues, and is undone.
my $deliver = qq{
	BEGIN;
	SET LOCAL SESSION AUTHORIZATION "Ann's role";
	SELECT payload, attempt, key, headers, message_group, downstream_key FROM $schema.idem_dequeue('failed');
	SELECT payload, attempt, key, headers, message_group, downstream_key FROM $schema.idem_dequeue('q', 10);
	SELECT $schema.idem_redrive('dead');
	SELECT payload, attempt, key, headers, message_group, downstream_key FROM $schema.idem_dequeue('dead');
	SELECT $schema.idem_enqueue('q', '"again"', key => 'leased') = $id;
	SET LOCAL SESSION AUTHORIZATION bob;
	SELECT count(*) FROM $schema.idem_dequeue('q', owner => 'Ann''s role');
	ROLLBACK};
my $delivered = $old->safe_psql('shop', $deliver);
like($delivered, qr/^"failed"\|2\|.*\n"with key"\|1\|.*\n"one"\|1\|.*\n1\n"dead"\|1\|.*\nt\n0$/,
	'messages are delivered on the old server');
my $last_id = $old->safe_psql('shop', "SELECT last_value FROM $schema.idem_message_id");

# All that there is; what is dumped are the keys of roles, and their steps.
my $records = qq{SELECT * FROM $schema.idem_key ORDER BY owner::text, scope, key};
my $steps = qq{SELECT * FROM $schema.idem_step ORDER BY generation, step};
my $all = $old->safe_psql('shop', $steps);
my $before = $old->safe_psql('shop',
	$records =~ s/ORDER/WHERE owner IN (SELECT oid FROM pg_roles) ORDER/r);
my $steps_before = $old->safe_psql('shop', $steps =~ s/ORDER/WHERE step <> 'vanishes' ORDER/r);
is(scalar(split /\n/, $all), 4, 'there are four steps');
is(scalar(split /\n/, $steps_before), 3, 'one of them of a vanished role');
my $secret = $old->safe_psql('shop', "SELECT secret FROM $schema.idem_secret");
like($secret, qr/^[0-9a-f-]{36}$/, 'there is one secret');

# A transaction in flight is not dumped.
my $pending = $old->background_psql('shop', on_error_stop => 0);
$pending->query_safe(qq{
	BEGIN;
	SELECT FROM $schema.idem_claim('in flight');
	SELECT $schema.idem_finish('in flight')});

my $dir = PostgreSQL::Test::Utils::tempdir;
$old->command_ok([ 'pg_dump', '-Fp', '-f', "$dir/plain", 'shop' ], 'pg_dump, plain');
$old->command_ok([ 'pg_dump', '-Fc', '-f', "$dir/custom", 'shop' ], 'pg_dump, custom');
$old->command_ok([ 'pg_dump', '-s', '-f', "$dir/schema", 'shop' ], 'pg_dump, schema only');
$pending->query_safe('ROLLBACK');
$pending->quit;

my $plain = slurp_file("$dir/plain");
unlike($plain, qr/\Q$secret\E/, 'the secret is not dumped');
unlike($plain, qr/in flight/, 'nor what is not committed');
like($plain, qr/COPY \Q$schema\E\.idem_step /, 'the steps are dumped');
unlike($plain, qr/vanishes/, 'but not those of vanished roles');
like($plain, qr/COPY \Q$schema\E\.$_ /, "$_ is dumped") for qw(idem_message idem_dead_letter idem_queue);
unlike($plain, qr/orphan/, 'but no message of a vanished role');
unlike($plain, qr/CREATE (TABLE|VIEW|FUNCTION) \Q$schema\E/,
	'members of the extension are left to CREATE EXTENSION');
like($plain, qr/COPY \Q$schema\E\.idem_key /, 'the records are dumped');
unlike($plain, qr/GRANT .* ON TABLE \Q$schema\E/, 'without privileges');
unlike(slurp_file("$dir/schema"), qr/COPY /, 'but not with the schema alone');

# Restored, everything is answered as before, by the same roles.
sub check
{
	my ($node, $database, $how) = @_;

	is($node->safe_psql($database, $records), $before, "$how: same records");
	is($node->safe_psql($database, $steps), $steps_before, "$how: same steps");
	is($node->safe_psql($database, "$messages; $letters; $queues"), $queue_before,
		"$how: same messages, dead letters and queues");
	is($node->safe_psql($database, "SELECT last_value FROM $schema.idem_message_id"), $last_id,
		"$how: the numbers of messages go on");
	is($node->safe_psql($database, $deliver), $delivered,
		"$how: the same is delivered, under the same downstream keys");
	is($node->safe_psql($database, qq{
		BEGIN;
		SET LOCAL SESSION AUTHORIZATION bob;
		SELECT $schema.idem_extend($id, $token, '2 h') > clock_timestamp() + interval '1 h';
		SELECT $schema.idem_ack($id, $token);
		SELECT $schema.idem_enqueue('q', '1') > $last_id;
		ROLLBACK}), "t\n\nt", "$how: a lease holds, for those with whom the queue is shared");
	is($node->safe_psql($database, qq{
		BEGIN;
		UPDATE $schema.idem_key SET lease_until = clock_timestamp() WHERE key = 'flow' AND owner = 'bob'::regrole;
		SET LOCAL SESSION AUTHORIZATION bob;
		SELECT outcome, attempt FROM $schema.idem_claim('flow');
		SELECT done, result FROM $schema.idem_step('flow', E'\\t\\\\"\\u00e4', request => '[1]');
		SELECT done FROM $schema.idem_step('flow', 'two');
		SELECT $schema.idem_step_finish('flow', 'two', '"new"');
		SELECT $schema.idem_finish('flow', '3');
		SELECT step = 'two', result, attempt FROM $schema.idem_steps('flow');
		SET LOCAL SESSION AUTHORIZATION "Ann's role";
		SELECT outcome, response FROM $schema.idem_claim('flow');
		SELECT step, result, attempt FROM $schema.idem_steps('flow');
		ROLLBACK;}),
		join("\n", 'claimed|2', 't|{"n": 10.0}', 'f', '"new"', '3', 'f|{"n": 10.0}|1', 't|"new"|2',
			'replayed|2', 'one|{"n": 1}|1', 'two||1'), "$how: a flow goes on");
	is($node->safe_psql($database, qq{
		SET SESSION AUTHORIZATION "Ann's role";
		SELECT outcome, response FROM $schema.idem_claim('k', scope => 's', request => '{"amount": 10}');
		SELECT outcome FROM $schema.idem_claim('k', scope => 's', request => '{"amount": 11}');
		SELECT outcome, response IS NULL FROM $schema.idem_claim('nothing');
		SELECT outcome, response FROM $schema.idem_claim('0ac2dcfc-9f0c-4c1c-8f1e-5d6c7b8a9012');
		SELECT outcome, response FROM $schema.idem_claim(E'\\n\\t\\\\"\\u00e4');
		SET SESSION AUTHORIZATION bob;
		SELECT outcome, response FROM $schema.idem_claim('k', scope => 's');
		SELECT count(*) FROM $schema.idem_lookup('nothing');
	}), qq(replayed|{"by": "ann"}\nmismatch\nreplayed|t\nreplayed|"uuid"\nreplayed|null\nreplayed|{"by": "bob"}\n0),
		"$how: replays and mismatches");
	my $other = $node->safe_psql($database, "SELECT secret FROM $schema.idem_secret");
	like($other, qr/^[0-9a-f-]{36}$/, "$how: one secret");
	isnt($other, $secret, "$how: another secret");
	is($node->safe_psql($database, qq{
		SELECT count(*) FROM pg_class, LATERAL aclexplode(relacl) AS a
		 WHERE oid IN ('$schema.idem_key'::regclass, '$schema.idem_step'::regclass, '$schema.idem_secret'::regclass)
		   AND a.grantee <> relowner}), 0, "$how: privileges for nobody");
	is($node->safe_psql($database, qq{
		SET SESSION AUTHORIZATION bob;
		BEGIN;
		SELECT outcome FROM $schema.idem_claim('new $how');
		SELECT $schema.idem_finish('new $how', '1');
		COMMIT;
		SELECT outcome, response FROM $schema.idem_claim('new $how');
		SELECT $schema.idem_forget('new $how');
	}), "claimed\n1\nreplayed|1\nt", "$how: new keys");
	return;
}

$new->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/plain", 'shop' ],
	'restored by psql');
check($new, 'shop', 'psql');

$new->safe_psql('postgres', 'CREATE DATABASE shop2');
$new->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'shop2', "$dir/custom" ],
	'restored by pg_restore');
check($new, 'shop2', 'pg_restore');

$new->safe_psql('postgres', 'CREATE DATABASE shop3');
$new->command_ok([ 'pg_restore', '--exit-on-error', '-j', 2, '-d', 'shop3', "$dir/custom" ],
	'restored by pg_restore in parallel');
check($new, 'shop3', 'pg_restore -j');

# A copy made by the server has the records, too.
$new->safe_psql('postgres', 'CREATE DATABASE shop4 TEMPLATE shop3');
is($new->safe_psql('shop4', $records), $before, 'CREATE DATABASE ... TEMPLATE: same records');
is($new->safe_psql('shop4', $steps), $steps_before, 'CREATE DATABASE ... TEMPLATE: same steps');

# Neither table needs the other to be there first.
my ($list, $err) = run_command([ 'pg_restore', '-l', "$dir/custom" ]);
my ($key_data) = $list =~ /^(\d+;.* TABLE DATA .* idem_key .*\n)/m;
my ($step_data) = $list =~ /^(\d+;.* TABLE DATA .* idem_step .*\n)/m;
for my $order ("$key_data$step_data", "$step_data$key_data")
{
	my $how = $order =~ /key.*step/s ? 'keys before steps' : 'steps before keys';
	my $database = $how =~ s/ /_/gr;
	my $others = $list =~ s/\Q$key_data\E//r =~ s/^\Q$step_data\E/$order/mr;
	append_to_file("$dir/$database", $others);
	$new->safe_psql('postgres', "CREATE DATABASE $database");
	$new->command_ok([ 'pg_restore', '--exit-on-error', '-L', "$dir/$database", '-d', $database,
		"$dir/custom" ], "restored by pg_restore, $how");
	check($new, $database, $how);
}

$old->stop;
$new->stop;
done_testing();
