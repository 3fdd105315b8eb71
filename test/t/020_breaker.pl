# Circuit breakers are shared: what one connection has seen counts for all of the
# database, at once, whatever becomes of its transaction. No count is lost, no more
# calls are tried than there are probes, and a caller that dies while it tries jams
# nothing. Their configuration is data; their state is gone with the server.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 64;

my $node = PostgreSQL::Test::Cluster->new('primary');
$node->init(allows_streaming => 1);
$node->append_conf('postgresql.conf', <<'EOT');
shared_preload_libraries = 'idempotency'
idempotency.janitor_interval = 0
max_connections = 100
statement_timeout = '120s'
EOT
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION idempotency');

sub sqlstate
{
	my ($server, $command, $database) = @_;
	my ($out, $err);

	$server->psql($database // 'postgres', "\\set VERBOSITY sqlstate\n$command",
		stdout => \$out, stderr => \$err);
	return $err =~ /ERROR:  (\w{5})/ ? $1 : 'none';
}

sub state_of
{
	my ($name, $columns, $server) = @_;

	$columns //= 'state, calls, failures';
	return ($server // $node)->safe_psql('postgres',
		"SELECT $columns FROM idem_breakers WHERE name = '$name'");
}

sub session
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	$session->set_query_timer_restart;
	return $session;
}

# As many clients as there may be, each so often.
sub all_at_once
{
	my ($name, $times, $script) = @_;

	$node->pgbench("-n -c $clients -j 2 -t $times", 0, [qr{processed: (\d+)/\1\b}],
		[qr{^}], $name, { "020_breaker_$name" => $script });
	return;
}

# Bring a breaker into the half open state, where it stays for an hour if nobody
# answers.
sub half_open
{
	my ($name, $probes) = @_;

	$node->safe_psql('postgres', qq{
		SELECT idem_breaker_configure('$name', minimum_calls => 1, open_for => '10 ms');
		SELECT idem_breaker_record('$name', false)});
	$node->poll_query_until('postgres',
		"SELECT state = 'half_open' FROM idem_breakers WHERE name = '$name'")
	  or die 'it stays open';
	$node->safe_psql('postgres', qq{
		SELECT idem_breaker_configure('$name', minimum_calls => 1, open_for => '1 h',
									  half_open_probes => $probes)});
	return;
}

# What was rolled back, and what others see.

my $first = session();
my $second = session();
$first->query_safe(q{
	BEGIN;
	SELECT idem_breaker_record('shared', false);
	SELECT idem_breaker_record('shared', true)});
is($second->query_safe(q{SELECT calls, failures FROM idem_breakers WHERE name = 'shared'}),
	'2|1', 'others see what an open transaction has counted');
$first->query_safe('ROLLBACK');
is(state_of('shared'), 'closed|2|1', 'and it survives the rollback');
$first->query(q{
	BEGIN;
	SELECT idem_breaker_record('shared', false);
	SELECT 1 / 0;
	ROLLBACK});
$first->{stderr} = '';
is(state_of('shared'), 'closed|3|2', 'and an error');
$second->query_safe(q{
	SELECT idem_breaker_configure('pair', minimum_calls => 2, open_for => '1 h');
	SELECT idem_breaker_record('pair', false)});
is($first->query_safe(q{SELECT allowed FROM idem_breaker_allow('pair')}), 't', 'one failure');
is($first->query_safe(q{SELECT idem_breaker_record('pair', false)}), 'open',
	'and one of another connection open it');
is($second->query_safe(q{
	SELECT allowed, state, retry_after > '59 min' FROM idem_breaker_allow('pair')}),
	'f|open|t', 'for both');

# A configuration counts for others from the commit on.

$second->query_safe(q{
	BEGIN;
	SELECT idem_breaker_configure('later', minimum_calls => 1)});
is($first->query_safe(q{SELECT idem_breaker_record('later', false)}), 'closed',
	'a configuration that is not committed');
$second->query_safe('COMMIT');
is($first->query_safe(q{SELECT idem_breaker_record('later', false)}), 'open', 'and one that is');

# No lost update.

$node->safe_psql('postgres', q{
	SELECT idem_breaker_configure('busy', minimum_calls => 2000000000, window_length => '1 day',
								  slow_call => '1 s')});
all_at_once('lost_update', 50, q{
	SELECT idem_breaker_record('busy', true);
	SELECT idem_breaker_record('busy', false);
	BEGIN;
	SELECT idem_breaker_record('busy', true, '2 s');
	ROLLBACK;
	});
is(state_of('busy', 'state, calls, failures, slow'),
	join('|', 'closed', 3 * 50 * $clients, 50 * $clients, 50 * $clients),
	"$clients clients at once: nothing is lost");

# Probes: those who are allowed while it is half open, whatever happens meanwhile.

$node->safe_psql('postgres', 'CREATE TABLE answer (round int, allowed boolean, state text)');
for my $probes (1, 3, 32)
{
	half_open("probe $probes", $probes);
	all_at_once("probes_$probes", 10, qq{
		INSERT INTO answer
		SELECT $probes, allowed, state FROM idem_breaker_allow('probe $probes');
		});
	is($node->safe_psql('postgres', qq{
		SELECT count(*), count(*) FILTER (WHERE allowed), count(DISTINCT state)
		  FROM answer WHERE round = $probes}), join('|', 10 * $clients, $probes, 1),
		"$clients clients at once: no more are allowed than $probes");
	is(state_of("probe $probes", 'state, probes'), "half_open|$probes", 'they are out');
	is($node->safe_psql('postgres', qq{
		SELECT string_agg(DISTINCT idem_breaker_record('probe $probes', true), ' ')
		  FROM generate_series(2, $probes)}), $probes == 1 ? '' : 'half_open',
		'all but one have answered');
	is($node->safe_psql('postgres', "SELECT allowed FROM idem_breaker_allow('probe $probes')"),
		'f', 'and their places are not given away');
	is($node->safe_psql('postgres', "SELECT idem_breaker_record('probe $probes', true)"),
		'closed', 'the last one closes it');
}

# The same while probes are answered as they come: the third one closes it, and from
# then on everybody is allowed.

for my $round (101 .. 103)
{
	half_open('answered', 3);
	all_at_once("answered_$round", 5, qq{
		WITH a AS MATERIALIZED (SELECT allowed, state FROM idem_breaker_allow('answered')),
			 b AS (INSERT INTO answer SELECT $round, allowed, state FROM a RETURNING allowed)
		SELECT CASE WHEN allowed THEN idem_breaker_record('answered', true) END FROM b;
		});
	is($node->safe_psql('postgres', qq{
		SELECT count(*) FILTER (WHERE allowed AND state = 'half_open'),
			   count(*) FILTER (WHERE NOT allowed AND state = 'closed')
		  FROM answer WHERE round = $round}), '3|0', 'three probes, and it closes');
	is(state_of('answered', 'state, probes'), 'closed|0', 'it is closed');
	$node->safe_psql('postgres', q{SELECT idem_breaker_reset('answered')});
}

# One that dies while it tries.

half_open('jam', 1);
$node->safe_psql('postgres', q{
	SELECT idem_breaker_configure('jam', minimum_calls => 1, open_for => '200 ms',
								  half_open_probes => 1)});
my $pid = $second->query_safe('SELECT pg_backend_pid()');
is($second->query_safe(q{SELECT allowed, state FROM idem_breaker_allow('jam')}), 't|half_open',
	'one is allowed to try');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok($node->poll_query_until('postgres',
	"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid"), 'and dies');
ok($node->poll_query_until('postgres', q{SELECT allowed FROM idem_breaker_allow('jam')}),
	'then another one is allowed');
is($node->safe_psql('postgres', q{SELECT idem_breaker_record('jam', true)}), 'closed',
	'and closes it');
eval { $second->quit };

# By itself it goes from open to half open, and back if the probe fails.

$node->safe_psql('postgres', q{
	SELECT idem_breaker_configure('again', minimum_calls => 1, open_for => '200 ms',
								  half_open_probes => 1);
	SELECT idem_breaker_record('again', false)});
for (1 .. 2)
{
	ok($node->poll_query_until('postgres', q{SELECT allowed FROM idem_breaker_allow('again')}),
		'a probe is allowed after a while');
	is($node->safe_psql('postgres', q{SELECT idem_breaker_record('again', false)}), 'open',
		'and opens it again');
}

# The quorum.

$node->safe_psql('postgres', q{
	SELECT idem_breaker_configure('quorum', minimum_calls => 5, quorum => 2, open_for => '1 h')});
is($node->safe_psql('postgres', q{
	SET application_name = 'one';
	SELECT string_agg(DISTINCT idem_breaker_record('quorum', false), ' ')
	  FROM generate_series(1, 20)}), 'closed', 'failures of one client do not open it');
is($node->safe_psql('postgres', q{
	SET application_name = 'one';
	SELECT idem_breaker_record('quorum', false)}), 'closed', 'nor do those of its other connection');
is($node->safe_psql('postgres', q{
	SET application_name = 'two';
	SELECT idem_breaker_record('quorum', true)}), 'closed', 'nor a success of another one');
is(state_of('quorum', 'failing_clients'), 1, 'one client has seen failures');
is($node->safe_psql('postgres', q{
	SET application_name = 'two';
	SELECT idem_breaker_record('quorum', false)}), 'open', 'those of two do');

# By force.

$node->safe_psql('postgres', q{
	BEGIN;
	SELECT idem_breaker_force('forced', 'open');
	ROLLBACK});
is($first->query_safe(q{SELECT allowed, state, retry_after FROM idem_breaker_allow('forced')}),
	'f|open|', 'forced open, be it rolled back');
is(state_of('forced', 'state, forced'), 'open|t', 'and it shows');
$node->safe_psql('postgres', q{SELECT idem_breaker_force('pair', 'closed')});
is($first->query_safe(q{SELECT allowed, state FROM idem_breaker_allow('pair')}), 't|closed',
	'forced closed');
$node->safe_psql('postgres', q{
	SELECT idem_breaker_force('pair', 'auto'); SELECT idem_breaker_force('forced', 'auto')});
is($first->query_safe(q{SELECT allowed, state FROM idem_breaker_allow('pair')}), 'f|open',
	'by itself it is open still');
is($first->query_safe(q{SELECT allowed, state FROM idem_breaker_allow('forced')}), 't|closed',
	'and the other one closed');
$node->safe_psql('postgres', q{SELECT idem_breaker_reset('pair')});
is($first->query_safe(q{SELECT allowed, state FROM idem_breaker_allow('pair')}), 't|closed',
	'a reset closes');
is(state_of('pair', 'state, calls, minimum_calls'), 'closed|0|2', 'and leaves the configuration');

# Who may do what.

$node->safe_psql('postgres', q{
	CREATE ROLE clerk LOGIN;
	CREATE ROLE stranger LOGIN;
	GRANT EXECUTE ON FUNCTION idem_breaker_force(text, text), idem_breaker_reset(text) TO clerk});
for my $command (
	q{SELECT idem_breaker_configure('x')},
	q{SELECT idem_breaker_force('x', 'open')},
	q{SELECT idem_breaker_reset('x')},
	q{TABLE idem_breaker},
	q{INSERT INTO idem_breaker VALUES ('x')})
{
	is(sqlstate($node, "SET ROLE stranger; $command"), '42501', "not for everybody: $command");
}
for my $command (
	q{SELECT * FROM idem_breaker_allow('x')},
	q{SELECT idem_breaker_record('x', true)},
	q{TABLE idem_breakers})
{
	is(sqlstate($node, "SET ROLE stranger; $command"), 'none', "for everybody: $command");
}
is(sqlstate($node, q{
	SET ROLE clerk;
	SELECT idem_breaker_force('x', 'open');
	SELECT idem_breaker_reset('x')}), 'none', 'for whoever was granted EXECUTE');

# Databases have breakers of their own.

$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION idempotency');
is($node->safe_psql('other', 'SELECT count(*) FROM idem_breakers'), 0,
	'another database has none of ours');
$node->safe_psql('other', q{
	SELECT idem_breaker_configure('quorum', minimum_calls => 1, open_for => '1 h')});
is($node->safe_psql('other', q{SELECT idem_breaker_record('quorum', true)}), 'closed',
	'nor is it open because ours is');
$node->safe_psql('other', q{SELECT idem_breaker_reset('quorum')});
is(state_of('quorum', 'state'), 'open', 'nor does its reset close ours');

# A dump has the configuration, and no state.

my $configuration = q{SELECT * FROM idem_breaker ORDER BY name};
my $dump = PostgreSQL::Test::Utils::tempdir . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') ], 'a dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok(
	[ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('restored') ],
	'is restored');
isnt($node->safe_psql('postgres', $configuration), '', 'there is a configuration');
is($node->safe_psql('restored', $configuration), $node->safe_psql('postgres', $configuration),
	'the restored database has it');
is($node->safe_psql('restored', q{
	SELECT count(*) FROM idem_breakers WHERE state <> 'closed' OR calls > 0 OR forced}), 0,
	'and nothing else');
is($node->safe_psql('restored', q{SELECT idem_breaker_record('later', false)}), 'open',
	'and it rules there');

# All places are taken.

$node->safe_psql('postgres', 'SELECT idem_breaker_reset(name) FROM idem_breakers');
$node->safe_psql($_, 'SELECT idem_breaker_reset(name) FROM idem_breakers') for 'other', 'restored';
$node->safe_psql('other', q{
	SELECT count(idem_breaker_record('b' || i, true)) FROM generate_series(1, 100) AS i});
$first->query_safe(q{
	SELECT count(idem_breaker_record('b' || i, true)) FROM generate_series(1, 156) AS i});
is(sqlstate($node, q{SELECT * FROM idem_breaker_allow('b157')}), '53400',
	'256 breakers are as many as there may be');
is(sqlstate($node, q{SELECT idem_breaker_record('b157', true)}, 'restored'), '53400',
	'in all databases together');
is($first->query_safe(q{SELECT idem_breaker_record('b1', true)}), 'closed',
	'those that are there work on');
$node->safe_psql('postgres', q{SELECT idem_breaker_reset('b1')});
is($node->safe_psql('postgres', q{SELECT idem_breaker_record('b157', false)}), 'closed',
	'a reset makes room');
like($first->query(q{SELECT idem_breaker_record('b1', true)}) . $first->{stderr},
	qr/too many circuit breakers/, 'and whoever remembers the place does not use it');
is(state_of('b157'), 'closed|1|1', 'for it is that of another breaker');
$first->{stderr} = '';
$node->safe_psql('postgres', 'DROP DATABASE other');
is($node->safe_psql('postgres', q{
	SELECT count(idem_breaker_record('c' || i, true)) FROM generate_series(1, 100) AS i}), 100,
	'the places of a database that was dropped are used again');
is(sqlstate($node, q{SELECT * FROM idem_breaker_allow('c101')}), '53400', 'and then it is full');
is($node->safe_psql('postgres', q{
	SELECT count(*), sum(calls) FROM idem_breakers WHERE name ~ '^[bc][0-9]+$'}), '256|256',
	'each with what it has counted');
$node->safe_psql('postgres', 'SELECT idem_breaker_reset(name) FROM idem_breakers');
$first->quit;

# On a standby: of its own, with the configuration of the primary.

$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->safe_psql('postgres', q{
	SELECT idem_breaker_configure('there', minimum_calls => 2, open_for => '1 h')});
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
is($standby->safe_psql('postgres', q{
	SELECT allowed, state FROM idem_breaker_allow('there');
	SELECT idem_breaker_record('there', false);
	SELECT idem_breaker_record('there', false);
	SELECT allowed, state FROM idem_breaker_allow('there')}),
	"t|closed\nclosed\nopen\nf|open", 'a standby has breakers');
is(state_of('there'), 'closed|0|0', 'that are not those of the primary');
is(sqlstate($standby, q{SELECT idem_breaker_configure('there')}), '25006',
	'but are configured there');
$node->safe_psql('postgres', q{
	SELECT idem_breaker_configure('there', minimum_calls => 1, open_for => '2 h')});
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
is($standby->safe_psql('postgres', q{
	SELECT idem_breaker_reset('there');
	SELECT idem_breaker_record('there', false);
	SELECT retry_after > '1 h' FROM idem_breaker_allow('there')}), "\nopen\nt",
	'and anew');
$standby->stop;

# A restart closes all.

$node->safe_psql('postgres', q{
	SELECT idem_breaker_record('there', false);
	SELECT idem_breaker_force('held', 'open')});
is(state_of('there') . ' ' . state_of('held', 'state, forced'), 'open|0|0 open|t',
	'before a restart');
for my $how ('fast', 'immediate')
{
	$node->stop($how);
	$node->start;
	is(state_of('there', 'state, calls, failures, open_for'), 'closed|0|0|02:00:00',
		"$how: closed after it, and configured as before");
	is(state_of('held'), '', 'and nothing is forced');
	$node->safe_psql('postgres', q{
		SELECT idem_breaker_record('there', false);
		SELECT idem_breaker_force('held', 'open')});
}
$node->stop;

# Without preload: from PostgreSQL 17 on there is shared memory all the same.

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->start;
my $late = $node->safe_psql('postgres',
	q{SELECT current_setting('server_version_num')::int >= 170000}) eq 't';
for my $command (
	q{SELECT * FROM idem_breaker_allow('there')},
	q{SELECT idem_breaker_record('there', true)},
	q{SELECT idem_breaker_force('there', 'auto')},
	q{SELECT idem_breaker_reset('there')})
{
	my ($out, $err);
	$node->psql('postgres', "\\set VERBOSITY verbose\n$command", stdout => \$out, stderr => \$err);
	like($err, $late ? qr/^$/ : qr/ERROR:  55000: .*\n?HINT:  .*shared_preload_libraries/,
		"not preloaded: $command");
}
is(state_of('there', 'state, calls, open_for'), 'closed|0|02:00:00',
	'not preloaded: the view shows the configuration');
is(sqlstate($node, q{SELECT idem_breaker_configure('there')}), 'none',
	'not preloaded: and it can be changed');
$node->stop;

done_testing();
