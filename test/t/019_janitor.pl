# The janitor, where the library is preloaded: it removes what has expired from
# every database that has the extension, and nothing else; waits for nobody, keeps
# nobody from anything, and goes on whatever happens to it, to one of the databases
# or to the server.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

my $node = PostgreSQL::Test::Cluster->new('primary');
$node->init(allows_streaming => 1);
$node->append_conf('postgresql.conf', <<'EOT');
shared_preload_libraries = 'idempotency'
idempotency.janitor_interval = 1
max_worker_processes = 8
statement_timeout = '120s'
log_min_messages = debug1
autovacuum = off
EOT
$node->start;

my @served = ('first', 'second', 'third');

# Rows that have expired, under names that begin with "gone".
my $expired = q{
	SELECT idem_finish('gone ' || i) FROM generate_series(1, 5) AS i, idem_claim('gone ' || i, ttl => '1 ms')};

# Waits until a query answers true; every now and then the janitor is told to begin
# a round at once, however long the last one has taken.
sub eventually
{
	my ($database, $query, $server) = @_;
	my $deadline = time + 2 * $PostgreSQL::Test::Utils::timeout_default;

	$server //= $node;
	while (time < $deadline)
	{
		return 1 if $server->safe_psql($database, $query) eq 't';
		$server->reload;
		sleep 0.2;
	}
	return 0;
}

my $nothing_gone = q{SELECT count(*) = 0 FROM idem_key WHERE key ~ '^gone'};

# Something expires, and is removed.
sub serves
{
	my ($database, $name, $server) = @_;

	($server // $node)->safe_psql($database, $expired);
	ok(eventually($database, $nothing_gone, $server), $name);
	return;
}

sub configure
{
	my (%settings) = @_;

	$node->safe_psql('postgres', "ALTER SYSTEM SET idempotency.$_ = $settings{$_}")
	  for sort keys %settings;
	$node->reload;
	return;
}

# What expires and what does not.

my $fill = $expired . q{;
	BEGIN;
	SELECT FROM idem_claim('gone flow', ttl => '1 ms');
	SELECT idem_step_finish('gone flow', 'step');
	SELECT idem_finish('gone flow');
	SELECT FROM idem_claim('kept flow');
	SELECT idem_step_finish('kept flow', 'step');
	SELECT idem_finish('kept flow');
	COMMIT;
	SELECT idem_fail('gone failed') FROM idem_claim('gone failed');
	UPDATE idem_key SET expires_at = clock_timestamp() WHERE key = 'gone failed';
	SELECT FROM idem_claim('gone lease', lease => '1 h');
	UPDATE idem_key SET lease_until = clock_timestamp(), expires_at = clock_timestamp()
	 WHERE key = 'gone lease';
	SELECT idem_finish('kept') FROM idem_claim('kept');
	SELECT FROM idem_claim('kept lease', lease => '1 h');
	SELECT FROM idem_claim('kept held', lease => '1 h', takeover => 'hold');
	UPDATE idem_key SET expires_at = clock_timestamp() WHERE key ~ '^kept (lease|held)';
	UPDATE idem_key SET lease_until = clock_timestamp() WHERE key = 'kept held';
	SELECT idem_configure_queue('short', dead_letter_ttl => '1 ms');
	SELECT idem_enqueue(queue, '1') FROM unnest('{short,long}'::text[]) AS queue;
	SELECT idem_nack(id, token, final => true)
	  FROM unnest('{short,long}'::text[]) AS queue, idem_dequeue(queue)};
my $rest = q{
	SELECT string_agg(key, ', ' ORDER BY key COLLATE "C") FROM idem_key;
	SELECT count(*) FROM idem_step;
	SELECT string_agg(queue, ', ') FROM idem_dead_letter};
my $all = q{SELECT (SELECT count(*) FROM idem_key), (SELECT count(*) FROM idem_step),
				   (SELECT count(*) FROM idem_dead_letter)};

$node->safe_psql('postgres', "CREATE DATABASE $_") for @served, 'bare';
# never anything else, or a worker might be on its way
$node->safe_psql('postgres', "CREATE DATABASE $_ IS_TEMPLATE true") for 'pattern', 'closed';
$node->safe_psql($_, 'CREATE EXTENSION idempotency') for @served, 'pattern', 'closed';
$node->safe_psql($_, $fill) for 'pattern', 'closed';
$node->safe_psql('postgres', 'ALTER DATABASE closed IS_TEMPLATE false ALLOW_CONNECTIONS false');
my $log = -s $node->logfile;
for my $database (@served)
{
	$node->safe_psql($database, $fill);
	ok(eventually($database, q{
		SELECT (SELECT count(*) = 0 FROM idem_key WHERE key ~ '^gone')
		   AND (SELECT count(*) = 0 FROM idem_dead_letter WHERE queue = 'short')}),
		"$database: what has expired vanishes");
	is($node->safe_psql($database, $rest), "kept, kept flow, kept held, kept lease\n1\nlong",
		'and nothing else');
}
is($node->safe_psql('pattern', $all), '12|2|2', 'a template is left alone');
$node->safe_psql('postgres', 'ALTER DATABASE closed IS_TEMPLATE true ALLOW_CONNECTIONS true');
is($node->safe_psql('closed', $all), $node->safe_psql('pattern', $all),
	'and a database that nobody may connect to');
unlike(slurp_file($node->logfile, $log), qr/ERROR|FATAL/, 'none of this is an error');
$node->safe_psql('postgres', "ALTER DATABASE $_ IS_TEMPLATE false") for 'pattern', 'closed';
$node->safe_psql('postgres', "DROP DATABASE $_") for 'pattern', 'closed';

# It shows, and holds nothing while it sleeps.

ok($node->poll_query_until('postgres', q{
	SELECT count(*) = 1 FROM pg_stat_activity
	 WHERE backend_type = 'idempotency janitor' AND datid IS NULL AND wait_event_type = 'Extension'
	   AND backend_xmin IS NULL AND backend_xid IS NULL AND xact_start IS NULL}),
	'the launcher sleeps without a transaction or a snapshot');

# The extension comes and goes.

$node->safe_psql('first', 'DROP EXTENSION idempotency');
serves('second', 'it goes on when a database has lost the extension');
$node->safe_psql($_, 'CREATE EXTENSION idempotency') for 'bare', 'first';
serves('bare', 'and finds it where it was created');
serves('first', 'also anew');

# Settings.

configure(janitor_interval => 0);
my $stopped = 0;
for (1 .. 5)
{
	# the first one may meet a round that is under way
	$node->safe_psql('bare', $expired);
	$node->poll_query_until('bare', q{
		SELECT clock_timestamp() > max(claimed_at) + '3 s' FROM idem_key});
	$stopped = $node->safe_psql('bare', $nothing_gone) eq 'f';
	last if $stopped;
}
ok($stopped, 'an interval of 0 turns it off');
configure(janitor_interval => 1);
ok(eventually('bare', $nothing_gone), 'and another one on again');

# A database is dropped while it works there, as any other, without FORCE; claims go
# on meanwhile, and are not blocked.

configure(janitor_batch => 20, janitor_pause => 10);
$node->safe_psql('postgres', 'CREATE DATABASE big');
$node->safe_psql('big', q{
	CREATE EXTENSION idempotency;
	INSERT INTO idem_key (expires_at, claimed_at, finished_at, id, owner, scope, state)
	SELECT now() - i * interval '1 s', now() - interval '1 day', now() - interval '1 day',
		   gen_random_uuid(), current_user::regrole, '', 'f'
	  FROM generate_series(1, 100000) AS i});
ok(eventually('postgres', q{
	SELECT count(*) > 0 FROM pg_stat_activity
	 WHERE backend_type = 'idempotency janitor' AND datname = 'big'}), 'the janitor is in a database');
ok($node->poll_query_until('big', 'SELECT count(*) < 100000 FROM idem_key'), 'and at work');
ok($node->poll_query_until('postgres', q{
	SELECT count(*) = 1 FROM pg_stat_activity
	 WHERE backend_type = 'idempotency janitor' AND datname = 'big' AND state = 'idle'
	   AND backend_xmin IS NULL AND backend_xid IS NULL AND xact_start IS NULL}),
	'a worker that pauses has no transaction and no snapshot');
is($node->safe_psql('big', q{
	SET lock_timeout = '5 s';
	CREATE TEMP TABLE sample AS
	SELECT id::text AS key FROM idem_key ORDER BY random() LIMIT 200;
	SELECT count(idem_finish(s.key, '1')) FROM sample AS s, idem_claim(s.key) AS c
	 WHERE c.outcome = 'claimed';
	SELECT count(*) FROM sample AS s, idem_lookup(s.key) AS l WHERE l.state = 'finished'}),
	"200\n200", 'expired keys are claimed meanwhile, and stay');
configure(janitor_interval => 0);
ok($node->poll_query_until('postgres', q{
	SELECT count(*) = 0 FROM pg_stat_activity
	 WHERE backend_type = 'idempotency janitor' AND datname = 'big'}), 'an interval of 0 ends a round, too');
my $left = $node->safe_psql('big', 'SELECT count(*) FROM idem_key');
cmp_ok($left, '>', 1000, 'with much left to do');
$node->safe_psql('big', q{SELECT idem_finish('a moment') FROM idem_claim('a moment')});
$node->poll_query_until('big', q{SELECT clock_timestamp() > max(claimed_at) + '3 s' FROM idem_key});
is($node->safe_psql('big', 'SELECT count(*) FROM idem_key'), $left + 1, 'that stays');
configure(janitor_interval => 1);
ok($node->poll_query_until('big', "SELECT count(*) < $left FROM idem_key"), 'until it is turned on again');
is($node->psql('postgres', 'DROP DATABASE big'), 0, 'the database can be dropped all the same');
serves('bare', 'and the janitor goes on');
$node->safe_psql('postgres', "ALTER SYSTEM RESET idempotency.$_") for 'janitor_batch', 'janitor_pause';
$node->reload;

# Somebody has an expired key claimed, and goes on for long: the rest is removed.

my $holder = $node->background_psql('second');
my $there = q{SELECT count(*) FROM idem_key WHERE key = 'gone claimed'};
my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
while (time < $deadline)
{
	# unless it has not expired yet, or the janitor was faster
	my $answer = $holder->query_safe(q{
		SELECT idem_finish('gone claimed') FROM idem_claim('gone claimed', ttl => '1 ms') WHERE outcome = 'claimed';
		BEGIN;
		SELECT outcome FROM idem_claim('gone claimed')});
	last if $answer =~ /claimed/ && $node->safe_psql('second', $there) == 1;
	$holder->query_safe('ROLLBACK');
}
$node->safe_psql('second', $expired);
ok(eventually('second', q{
	SELECT count(*) = 0 FROM idem_key WHERE key ~ '^gone' AND key <> 'gone claimed'}),
	'nobody waits for a claim over an expired record');
is($node->safe_psql('second', $there), 1, 'whose record stays');
$holder->query_safe(q{SELECT idem_finish('gone claimed'); COMMIT});
is($node->safe_psql('second', q{SELECT state FROM idem_lookup('gone claimed')}), 'finished',
	'and is finished');
$holder->quit;
$node->safe_psql('second', q{SELECT idem_forget('gone claimed')});

# A worker that fails comes later and later; other databases are served in every
# round. How often, is in the log: a line for each worker that is started.

my %oid = map { my ($name, $oid) = split /\|/; $name => $oid }
  split /\n/, $node->safe_psql('postgres', 'SELECT datname, oid FROM pg_database');
$log = -s $node->logfile;
$node->safe_psql('first', 'ALTER TABLE idem_key RENAME COLUMN response TO answer');
my @gaps;
my $deadline = time + 3 * $PostgreSQL::Test::Utils::timeout_default;
while (@gaps < 3 && time < $deadline)
{
	my $failed = 0;

	@gaps = ();
	for (split /\n/, slurp_file($node->logfile, $log))
	{
		$failed ||= /ERROR: .*idem_key/;
		next if !$failed;
		/starting background worker process "idempotency janitor of database (\d+)"/ or next;
		$gaps[-1]++ if @gaps && $1 == $oid{second};
		push @gaps, 0 if $1 == $oid{first};
	}
	pop @gaps;
	sleep 0.2;
}
is("@gaps[0 .. 1]", '3 5', 'where a worker fails, the next one comes later and later');
serves('second', 'others are served meanwhile');
$node->safe_psql('first', 'ALTER TABLE idem_key RENAME COLUMN answer TO response');
serves('first', 'it is served again once that is undone');

# A table that somebody has locked.

$holder = $node->background_psql('third');
$node->safe_psql('third', $expired);
$holder->query_safe('BEGIN; LOCK TABLE idem_key IN SHARE MODE');
serves('second', 'nobody waits because one table is locked');
$holder->query_safe('COMMIT');
$holder->quit;
ok(eventually('third', $nothing_gone), 'and that one is served when it is free again');

# The launcher is terminated, and the server.

my $launcher = q{
	SELECT pid FROM pg_stat_activity WHERE backend_type = 'idempotency janitor' AND datid IS NULL};
my $pid = $node->safe_psql('postgres', $launcher);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok($node->poll_query_until('postgres', "SELECT ($launcher) <> $pid"),
	'a launcher that was terminated comes back');
serves('first', 'and works');
$node->stop('immediate');
$node->start;
serves($_, "$_ is served after a crash") for @served;

# No worker can be started: the launcher and that of logical replication take all.

$node->append_conf('postgresql.conf', 'max_worker_processes = 2');
$node->restart;
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM ($launcher) AS l"),
	'the launcher is there');
$node->safe_psql('first', $expired);
ok($node->poll_query_until('first', q{
	SELECT clock_timestamp() > max(claimed_at) + '3 s' FROM idem_key}), 'time goes by');
is($node->safe_psql('first', $nothing_gone), 'f', 'no worker comes if there is no place for one');
is($node->safe_psql('postgres', "SELECT count(*) FROM ($launcher) AS l"), 1,
	'but nothing breaks');
is($node->safe_psql('first', 'SELECT idem_expire()'), 5, 'and idem_expire works');
$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
$node->restart;
serves('first', 'with places for workers all is well');

# A standby has a launcher once it is promoted.

configure(janitor_interval => 0);
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->append_conf('postgresql.auto.conf', 'idempotency.janitor_interval = 1');
$standby->start;
$node->safe_psql('first', $expired);
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
is($standby->safe_psql('postgres', q{
	SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'idempotency janitor'}), 0,
	'a standby has no janitor');
is($standby->safe_psql('first', $nothing_gone), 'f', 'and shows what has expired');
$node->stop;
$standby->promote;
ok(eventually('first', $nothing_gone, $standby), 'after the promotion it starts');
$standby->stop;

# Without preload.

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->append_conf('postgresql.auto.conf', 'idempotency.janitor_interval = 1');
$node->start;
is($node->safe_psql('first', $nothing_gone), 'f', 'without preload it is still there');
is($node->safe_psql('first', q{
	SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'idempotency janitor';
	SELECT idem_expire()}), "0\n5", 'there is no janitor, and idem_expire works');
$node->stop;

done_testing();
