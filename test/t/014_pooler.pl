# Poolers: what holds behind pgbouncer, which gives a server connection to one
# client after the other. In each of its modes: what a client leaves behind, by
# its end or by the end of anything beneath it, does not reach the next one on the
# same server connection; and claims, steps and finishes of one key may come
# through different ones.
#
# Then all modes at once under load, twenty-eight clients through nine server
# connections, in every protocol that the pooler can, while clients are killed,
# backends terminated, and the pooler is paused, reconnected, killed and started
# again: each key has one effect, and each repeat gets the response of that one.
#
# Needs Debian's package pgbouncer; without it all is skipped. Prepared statements
# of the protocol in transaction and statement mode need 1.21.

use strict;
use warnings;

use IO::Socket::UNIX;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

my ($pgbouncer) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin';
plan skip_all => 'pgbouncer is not installed (apt-get install pgbouncer)' unless $pgbouncer;
my ($version, $major, $minor) = `'$pgbouncer' --version` =~ /((\d+)\.(\d+)\S*)/;
my $can_prepare = $major * 1000 + $minor >= 1021;
note "pgbouncer $version";

my $node = PostgreSQL::Test::Cluster->new('pooled');
$node->init;
$node->append_conf('postgresql.conf', <<'EOT');
max_connections = 40
deadlock_timeout = '20ms'
statement_timeout = '60s'
log_line_prefix = '%m [%p] %u %a SQLSTATE=%e '
log_min_messages = warning
log_statement = none
EOT
$node->start;

# All that goes through the pooler is "app", which is how its server connections
# are told from those of this test.
#
# work() is what must be done once per key, and its response tells the runs
# apart. There is no unique constraint that could do it for us.
$node->safe_psql('postgres', q{
	CREATE EXTENSION idempotency;
	CREATE ROLE app LOGIN;
	GRANT CREATE ON SCHEMA public TO app;
	GRANT SELECT ON pg_backend_memory_contexts TO app;
	GRANT EXECUTE ON FUNCTION pg_get_backend_memory_contexts() TO app;
	SET ROLE app;

	CREATE TABLE effect (key text, response jsonb);
	CREATE TABLE step_effect (key text, step text, result jsonb);
	CREATE TABLE replay (key text, response jsonb);
	CREATE TABLE gate ();

	CREATE FUNCTION work(key text) RETURNS jsonb LANGUAGE sql VOLATILE AS $$
		INSERT INTO effect VALUES (key, jsonb_build_object('run', gen_random_uuid()))
		RETURNING response
	$$;
	CREATE FUNCTION step_work(key text, step text) RETURNS jsonb LANGUAGE sql VOLATILE AS $$
		INSERT INTO step_effect VALUES (key, step, jsonb_build_object('run', gen_random_uuid()))
		RETURNING result
	$$;

	CREATE FUNCTION ask(key text, lease interval = NULL, holder text = NULL,
						OUT claimed int, OUT token int8)
	LANGUAGE plpgsql VOLATILE AS $$
	DECLARE
		answer record;
	BEGIN
		SELECT * INTO STRICT answer
		  FROM idem_claim(ask.key, lease => ask.lease, holder => ask.holder);
		IF answer.outcome = 'replayed' THEN
			INSERT INTO replay VALUES (key, answer.response);
		END IF;
		claimed := (answer.outcome = 'claimed')::int;
		token := coalesce(answer.token, 0);
	END $$;

	-- one statement: claim, work and finish, or replay
	CREATE FUNCTION batch(VARIADIC keys text[]) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
	DECLARE
		mine text[];
	BEGIN
		WITH answer AS MATERIALIZED (SELECT * FROM idem_claim_many(keys)),
			 seen AS (INSERT INTO replay SELECT key, response FROM answer WHERE outcome = 'replayed')
		SELECT coalesce(array_agg(key), '{}') INTO STRICT mine FROM answer WHERE outcome = 'claimed';
		PERFORM idem_finish_many(mine, ARRAY(SELECT work(key) FROM unnest(mine) AS key));
	END $$;

	-- A hundred questions about twenty keys, then the next twenty: there is always
	-- something to be claimed, and something to be replayed.
	CREATE SEQUENCE asked MINVALUE 0;
	CREATE FUNCTION pick() RETURNS int LANGUAGE sql VOLATILE AS $$
		SELECT (nextval('asked') / 100 * 20 + floor(random() * 20))::int
	$$;

	CREATE PROCEDURE settle(keys int) LANGUAGE plpgsql AS $$
	DECLARE
		k text;
		a record;
		s text;
	BEGIN
		FOR n IN 0 .. keys - 1 LOOP
			FOREACH k IN ARRAY ARRAY['key-' || n, 'flow-' || n] LOOP
				a := ask(k, '1 h');
				IF a.claimed = 1 THEN
					FOREACH s IN ARRAY '{a,b}'::text[] LOOP
						IF k LIKE 'flow%' AND NOT (SELECT done FROM idem_step(k, s, token => a.token)) THEN
							PERFORM idem_step_finish(k, s, step_work(k, s), token => a.token);
						END IF;
					END LOOP;
					PERFORM idem_finish(k, work(k), token => a.token);
				END IF;
				COMMIT;
			END LOOP;
		END LOOP;
	END $$;
});

#
# The pooler
#

my @modes = ('transaction', 'session', 'statement');
my $admin = $node->safe_psql('postgres', 'SELECT current_user');
my $dir = PostgreSQL::Test::Utils::tempdir_short;
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $server = "host=@{[$node->host]} port=@{[$node->port]} dbname=postgres";
my $log = "$PostgreSQL::Test::Utils::log_path/pgbouncer.log";
my $pooler;

append_to_file("$dir/users", qq{"$admin" ""\n"app" ""\n});
append_to_file("$dir/ini",
	"[databases]\none = $server pool_mode=transaction pool_size=1\n"
	. join('', map { "$_ = $server pool_mode=$_ pool_size=3\n" } @modes) . <<"EOT");
[pgbouncer]
listen_addr =
listen_port = $port
unix_socket_dir = $dir
auth_type = trust
auth_file = $dir/users
admin_users = $admin
server_round_robin = 1
server_login_retry = 1
ignore_startup_parameters = extra_float_digits,options
log_connections = 0
log_disconnections = 0
@{[$can_prepare ? 'max_prepared_statements = 100' : '']}
EOT

# Where to connect to: a pool, the pooler's console, or the server itself.
sub through
{
	my ($pool) = @_;
	return "$server user=app" if $pool eq 'direct';
	return "host=$dir port=$port dbname=$pool user=" . ($pool eq 'pgbouncer' ? $admin : 'app');
}

sub wait_for
{
	my ($condition) = @_;
	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return if $condition->();
		sleep 0.1;
	}
	die 'timed out';
}

sub start_pooler
{
	$pooler = IPC::Run::start([ $pgbouncer, "$dir/ini" ],
		'<', '/dev/null', '>>', $log, '2>&1');
	wait_for(sub {
		$pooler->pumpable or die 'pgbouncer does not start: ' . slurp_file($log);
		IO::Socket::UNIX->new(Peer => "$dir/.s.PGSQL.$port");
	});
	return;
}

# KILL ends it at once, INT when no transaction is open. TERM was as KILL before 1.23,
# and waits since then until the clients have gone, which those of the load do.
sub stop_pooler
{
	my ($signal) = @_;
	$pooler->signal($signal);
	$pooler->finish;
	undef $pooler;
	return;
}

END
{
	my $status = $?;
	if ($pooler)
	{
		$pooler->signal('KILL');
		$pooler->finish;
	}
	$? = $status;
}

# What comes back, errors as their SQLSTATE after everything else.
sub ask
{
	my ($pool, $sql) = @_;
	my ($out, $err);
	$node->psql('postgres', "\\set VERBOSITY sqlstate\n$sql", connstr => through($pool),
		on_error_stop => 0, stdout => \$out, stderr => \$err);
	return join "\n", grep { $_ ne '' } $out, $err =~ /(?:ERROR|FATAL):  (.*)/g;
}

sub console
{
	my ($command) = @_;
	$node->safe_psql('postgres', $command, connstr => through('pgbouncer'));
	return;
}

sub session
{
	my ($pool) = @_;
	return $node->background_psql('postgres', on_error_stop => 0,
		extra_params => [ '-d', through($pool) ]);
}

sub pgbench
{
	my ($pool, $protocol, @options) = @_;
	return [ 'pgbench', '-n', '-c', 1, '-M', $protocol, @options, through($pool) ];
}

# The end of a session that is killed, or has lost what it was connected to.
sub bury
{
	my ($session) = @_;
	$session->{run}->signal('KILL');
	$session->{run}->finish;
	return;
}

sub count
{
	my ($what) = @_;
	return $node->safe_psql('postgres', "SELECT count(*) FROM $what");
}

sub has_gone
{
	my ($pid) = @_;
	return $node->poll_query_until('postgres',
		"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)");
}

my $locks = q{pg_locks WHERE locktype = 'advisory' AND objsubid = 18756};

start_pooler();

#
# One server connection: what does the next client find?
#

# Claims live in a memory context of their own, which is emptied at the end of a
# transaction. The lookup is there to load the library.
my $find = q{
	SELECT FROM idem_lookup('nothing') \g /dev/null
	SELECT pg_backend_pid(), used_bytes, (SELECT count(*) FROM idem_in_flight)
	  FROM pg_backend_memory_contexts WHERE name = 'idempotency claims'
};
my $clean = ask('one', $find);
like($clean, qr/^\d+\|\d+\|0$/, 'a server connection without a claim');

my @left = (
	[ 'a rollback', "BEGIN; SELECT outcome FROM idem_claim('KEY'); ROLLBACK;", 'claimed' ],
	[ 'a finish rolled back',
		"BEGIN; SELECT outcome FROM idem_claim('KEY'); SELECT idem_finish('KEY', '1'); ROLLBACK;",
		"claimed\n1" ],
	[ 'a refused commit',
		"BEGIN; SELECT outcome FROM idem_claim('KEY'); COMMIT;", "claimed\nID005" ],
	[ 'a statement by itself', "SELECT outcome FROM idem_claim('KEY');", 'ID005' ],
	[ 'an error', "BEGIN; SELECT outcome FROM idem_claim('KEY'); SELECT 1 / 0; ROLLBACK;",
		"claimed\n22012" ],
	[ 'a savepoint', "BEGIN; SAVEPOINT s; SELECT outcome FROM idem_claim('KEY'); "
		. 'SELECT 1 / 0; ROLLBACK TO s; COMMIT;', "claimed\n22012" ],
	[ 'a release', "BEGIN; SELECT outcome FROM idem_claim('KEY'); "
		. "SELECT FROM idem_release('KEY') \\g /dev/null\nCOMMIT;", 'claimed' ],
	[ 'a thousand claims', q{BEGIN; SELECT count(*) FROM idem_claim_many(
		ARRAY['KEY'] || ARRAY(SELECT 'KEY-' || i FROM generate_series(2, 1000) AS i)); ROLLBACK;},
		1000 ]);
for (@left)
{
	my ($what, $sql, $answer) = @$_;
	my $key = "after $what";

	is(ask('one', $sql =~ s/KEY/$key/gr), $answer, "$key: a client comes and goes");
	is(ask('one', $find), $clean, "$key: the next one has its server connection, and finds nothing");
	is(count($locks), 0, "$key: nor a lock");
	is(ask('one', "BEGIN; SELECT idem_finish('$key', '1'); ROLLBACK;"), 'ID001',
		"$key: it has no claim");
	is(ask('one', "BEGIN; SELECT claimed FROM ask('$key'); "
		. "SELECT FROM idem_finish('$key', work('$key')) \\g /dev/null\nCOMMIT;"), 1,
		"$key: but can make one");
	is(count("effect WHERE key = '$key'"), 1, "$key: and do the work, once");
}
is(ask('one', $find), $clean, 'all of that was on one server connection');

# A client that is cut off in its transaction, from above or from beneath. Its
# server connection cannot be used any more, and is closed by the pooler.

my %cut = (
	'its client is killed' => sub { bury($_[0]) },
	'its backend is terminated' =>
	  sub { $node->safe_psql('postgres', "SELECT pg_terminate_backend($_[1])") },
	'the pooler is killed' => sub { stop_pooler('KILL'); start_pooler() },
	'the console says KILL' => sub { console('KILL one'); console('RESUME one') });
for my $how (sort keys %cut)
{
	for my $finished (0, 1)
	{
		my $key = ($finished ? 'finished, then ' : 'claimed, then ') . $how;
		my $session = session('one');
		my ($pid, $outcome) = split /\n/, $session->query_safe(qq{
			BEGIN;
			SELECT pg_backend_pid();
			SELECT outcome FROM idem_claim('$key');
			INSERT INTO effect VALUES ('$key', '"lost"');
		});
		is($outcome, 'claimed', "$key: a claim");
		$session->query_safe("SELECT idem_finish('$key', '\"lost\"')") if $finished;
		$cut{$how}->($session, $pid);
		bury($session) unless $how =~ /client/;
		ok(has_gone($pid), "$key: the backend has gone");
		is(count($locks), 0, "$key: with the lock");
		is(ask('one', qq{
			BEGIN;
			SELECT outcome FROM idem_claim('$key');
			SELECT FROM idem_finish('$key', work('$key')) \\g /dev/null
			COMMIT;
			SELECT outcome, response = (SELECT response FROM effect WHERE key = '$key')
			  FROM idem_claim('$key');
		}), "claimed\nreplayed|t", "$key: another one does the work");
		is(count("effect WHERE key = '$key'"), 1, "$key: once");
	}
}

# A client that waits for a key and is killed leaves a statement behind that goes on,
# and may commit: nobody tells the backend. Whoever asks next gets its answer.
{
	my $holder = session('direct');
	my $ghost = session('transaction');
	my $once = q{SELECT outcome FROM idem_once('ghost', 'SELECT work($1)', '{ghost}');};

	$holder->query_safe(q{BEGIN; SELECT outcome FROM idem_claim('ghost');});
	$ghost->query_until(qr/asks/, "\\echo asks\n$once\n");
	ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM $locks AND NOT granted"),
		'ghost: a client waits for a key');
	bury($ghost);
	$holder->query_safe('ROLLBACK');
	$holder->quit;
	my $outcome = ask('transaction', $once);
	like($outcome, qr/^(claimed|replayed)$/, 'ghost: when it was killed, the next one is answered');
	note "ghost: $outcome";
	is(count(q{effect AS e JOIN idem_key AS k USING (key, response) WHERE key = 'ghost'}), 1,
		'ghost: the response is that of the work');
	is(count(q{effect WHERE key = 'ghost'}), 1, 'ghost: which was done once');
}

# The console waits for open transactions, or lets them end where they are.
for my $command ('PAUSE', 'RECONNECT')
{
	my $session = session('one');
	my $console = session('pgbouncer');
	my $pid = $session->query_safe('BEGIN; SELECT pg_backend_pid()');
	is($session->query_safe("SELECT outcome FROM idem_claim('$command')"), 'claimed',
		"$command: a claim");
	if ($command eq 'PAUSE')
	{
		$console->query_until(qr/asks/, "\\echo asks\nPAUSE one;\n");
		wait_for(sub {
			$node->safe_psql('postgres', "\\x\nSHOW DATABASES",
				connstr => through('pgbouncer')) =~ /^name\|one\n(?:.+\n)*paused\|1$/m;
		});
	}
	else
	{
		$console->query_safe('RECONNECT one');
	}
	$session->query_safe("SELECT idem_finish('$command', work('$command')); COMMIT");
	ok(has_gone($pid), "$command: the server connection is closed");
	$console->query_safe('RESUME one') if $command eq 'PAUSE';
	is(ask('one', qq{
		SELECT outcome, response = (SELECT response FROM effect WHERE key = '$command'),
			   pg_backend_pid() <> $pid FROM idem_claim('$command')}),
		'replayed|t|t', "$command: but not before the commit");
	$_->quit for $session, $console;
}

# Settings. What is SET stays with the server connection, for whoever comes next,
# unless the pooler resets it; SET LOCAL, the argument and the role's own do not.
{
	my $kept = sub {
		my ($key, $set) = @_;
		return ask('one', qq{
			BEGIN;
			$set
			SELECT FROM idem_claim('$key') AS c, idem_finish('$key') \\g /dev/null
			COMMIT;
			SELECT extract(epoch FROM expires_at - finished_at)::int FROM idem_lookup('$key');});
	};

	is($kept->('default', ''), 86400, 'ttl: the default');
	is($kept->('local', q{SET LOCAL idempotency.default_ttl = '5min';}), 300, 'ttl: SET LOCAL');
	is($kept->('after local', ''), 86400, 'ttl: is over with the transaction');
	ask('one', q{SET idempotency.default_ttl = '7min'});
	is($kept->('after set', ''), 420, 'ttl: SET by one client is there for the next');
	is($kept->('session', ''), 420, 'ttl: and for all that follow');
	console('SET server_reset_query_always = 1');
	ask('one', 'SELECT 1');
	is($kept->('reset', ''), 86400, 'ttl: unless the pooler resets it after each transaction');
	ask('one', q{SET idempotency.default_ttl = '7min'});
	is($kept->('reset again', ''), 86400, 'ttl: each time');
	console('SET server_reset_query_always = 0');
	$node->safe_psql('postgres', q{ALTER ROLE app SET idempotency.default_ttl = '9min'});
	console('RECONNECT one');
	is($kept->('role', ''), 540, 'ttl: that of the role, in new server connections');
	$node->safe_psql('postgres', q{ALTER ROLE app RESET idempotency.default_ttl});
	console('RECONNECT one');
}

# Session mode: between two clients the server connection is reset by DISCARD ALL,
# which takes settings and plans, but nothing that was committed.
{
	my $once = q{SELECT outcome, response FROM idem_once('KEY', 'SELECT $1::int + 1', '{1}');};
	my ($first, $token);

	($first, $token) = split /[\n|]/, ask('session', q{
		SELECT pg_backend_pid();
		SET idempotency.default_ttl = '7min';
		PREPARE claim AS SELECT outcome FROM idem_claim($1);
		SELECT token FROM idem_claim('kept', lease => '1 h');
	} . $once =~ s/KEY/first/r);
	is(ask('session', qq{
		SELECT pg_backend_pid();
		SHOW idempotency.default_ttl;
		SELECT idem_finish('kept', '"kept"', token => $token);
		EXECUTE claim('x');
	} . $once =~ s/KEY/second/r . $once =~ s/KEY/first/r),
		qq{$first\n1d\n"kept"\nclaimed|2\nreplayed|2\n26000}, 'session: reset, and as good as new');
}

# From here on with empty pools.
stop_pooler('INT');
start_pooler();

# A lease is claimed, worked on and finished through three server connections. The
# pool only grows if its connections are busy, so each is made to wait at the gate
# when it has been used.
for my $mode ('transaction', 'statement')
{
	my $key = "$mode flow";
	my $gate = session('direct');
	my (@used, @waiting);
	my $occupy = sub {
		my $session = session($mode);
		$session->query_until(qr/asks/, "\\echo asks\nSELECT FROM gate;\n");
		push @waiting, $session;
		ok($node->poll_query_until('postgres', sprintf
			q{SELECT array_agg(pid ORDER BY pid) = '{%s}' FROM pg_locks
			   WHERE relation = 'gate'::regclass AND NOT granted},
			join(',', sort { $a <=> $b } @used)), "$key: what was used is busy with others");
	};
	$gate->query_safe('BEGIN; LOCK TABLE gate;');

	my ($outcome, $token, $pid) = split /\|/, ask($mode,
		"SELECT outcome, token, pg_backend_pid() FROM idem_claim('$key', lease => '1 h')");
	is($outcome, 'claimed', "$key: a lease");
	push @used, $pid;
	$occupy->();

	is(ask($mode, "SELECT outcome FROM idem_claim('$key')"), 'in_progress', "$key: busy for others");
	is(ask($mode, "SELECT done FROM idem_step('$key', 'a', token => $token)"), 'f',
		"$key: the step is not done");
	is(ask($mode, "SELECT idem_step_finish('$key', 'a', token => $token + 1)"), 'ID003',
		"$key: another token does nothing");
	($outcome, $pid) = split /\|/, ask($mode, qq{
		SELECT idem_step_finish('$key', 'a', step_work('$key', 'a'), token => $token) IS NOT NULL,
			   pg_backend_pid()});
	is($outcome, 't', "$key: now it is");
	push @used, $pid;
	$occupy->();

	my $finish = qq{
		SELECT idem_finish('$key', work('$key'), token => $token) IS NOT NULL, pg_backend_pid();};
	$finish = "BEGIN; SELECT FROM idem_guard('$key', token => $token) \\g /dev/null\n$finish COMMIT;"
	  if $mode eq 'transaction';
	($outcome, $pid) = split /\|/, ask($mode, $finish);
	is($outcome, 't', "$key: the finish");
	is(scalar(grep { $_ == $pid } @used), 0, "$key: through a third server connection");
	$gate->query_safe('COMMIT');
	$_->quit for $gate, @waiting;

	is(ask($mode, qq{
		SELECT outcome, response = (SELECT response FROM effect WHERE key = '$key')
		  FROM idem_claim('$key')}), 'replayed|t', "$key: replayed");
	is(ask($mode, qq{
		SELECT count(*) FROM idem_steps('$key') JOIN step_effect USING (step, result)
		 WHERE key = '$key'}), 1, "$key: with its step");
	is(count("effect WHERE key = '$key'") . ' ' . count("step_effect WHERE key = '$key'"), '1 1',
		"$key: once");
}

# Statement mode: what needs no BEGIN. Statements that come in one message, as psql
# sends what is joined by \;, are one transaction.
for ([ q{SELECT outcome FROM idem_claim('s1');}, 'ID005' ],
	[ q{SELECT CASE outcome WHEN 'claimed' THEN idem_finish('s1', '1') ELSE response END
		  FROM idem_claim('s1');}, 1 ],
	[ q{SELECT CASE outcome WHEN 'claimed' THEN idem_finish('s1', '2') ELSE response END
		  FROM idem_claim('s1');}, 1 ],
	[ q{SELECT outcome FROM idem_claim('s2')\; SELECT idem_finish('s2', '2');}, "claimed\n2" ],
	[ q{SELECT outcome FROM idem_claim('s2')\; SELECT idem_finish('s2', '3');}, "replayed\nID002" ],
	[ q{SELECT * FROM idem_once('s3', 'SELECT $1::int', '{3}');}, 'claimed|3|' ],
	[ q{SELECT * FROM idem_once('s3', 'SELECT $1::int', '{4}');}, 'replayed|3|' ],
	[ q{SELECT token FROM idem_claim('s4', lease => '1 h') \gset
		SELECT idem_renew('s4', '3 h', token => :token) > now() + interval '2 h';
		SELECT state, attempt FROM idem_lookup('s4');
		SELECT idem_finish('s4', '4');
		SELECT idem_finish('s4', '4', token => :token);
		SELECT outcome, response FROM idem_claim('s4');}, "t\nin_progress|1\n4\nreplayed|4\nID001" ],
	[ q{SELECT token FROM idem_claim('s5', lease => '1 h') \gset
		SELECT outcome FROM idem_fail('s5', '"no"', final => true, token => :token);
		SELECT outcome, response FROM idem_claim('s5');}, qq{failed\nfailed|"no"} ],
	[ q{SELECT token FROM idem_claim('s6', lease => '1 h') \gset
		SELECT FROM idem_release('s6', token => :token) \g /dev/null
		SELECT count(*) FROM idem_lookup('s6');}, 0 ],
	[ q{SELECT array_agg(token) AS tokens FROM idem_claim_many('{s7,s8}', lease => '1 h') \gset
		SELECT key, response FROM idem_finish_many('{s7,s8}', '{7,8}', tokens => :'tokens');
		SELECT outcome, response FROM idem_claim_many('{s8,s7}');},
		"s7|7\ns8|8\nreplayed|8\nreplayed|7" ],
	[ q{SELECT idem_forget('s1');}, 't' ],
	[ q{SELECT idem_expire();}, 0 ])
{
	my ($sql, $answer) = @$_;
	is(ask('statement', $sql), $answer, "statement mode: " . $sql =~ s/\s+/ /gr);
}
is(ask('statement', 'BEGIN;'), '08P01', 'statement mode: no BEGIN');
is(count($locks), 0, 'statement mode: no lock is left');

is(ask('transaction', q{
	BEGIN;
	PREPARE c AS SELECT outcome FROM idem_claim($1);
	PREPARE f AS SELECT idem_finish($1, work($1)) IS NOT NULL;
	EXECUTE c('prepared');
	EXECUTE f('prepared');
	DEALLOCATE c;
	DEALLOCATE f;
	COMMIT;
}), "claimed\nt", 'transaction mode: PREPARE inside of the transaction');

# Those of the protocol stay with the server connection, and a pooler that does not
# know of them gives them to the next client.
my $scratch = PostgreSQL::Test::Utils::tempdir;
append_to_file("$scratch/prepared.sql", "SELECT outcome FROM idem_once('p', 'SELECT 1');\n");
for my $client ('first', 'second')
{
	my $err;
	IPC::Run::run(pgbench('one', 'prepared', '-t', 1, '-f', "$scratch/prepared.sql"),
		'>', '/dev/null', '2>', \$err);
	if ($can_prepare || $client eq 'first')
	{
		unlike($err, qr/ERROR/, "transaction mode: a prepared statement of the $client client");
	}
	else
	{
		like($err, qr/ERROR:  prepared statement "\w+" already exists/,
			'transaction mode: the second client meets the prepared statement of the first');
	}
}

#
# Load
#

# It would wait for what a broken engine never does.
if (!Test::More->builder->is_passing)
{
	done_testing();
	exit;
}
my $log_offset = -s $node->logfile;
my $began = time;

# What clients do. In transaction and session mode all of it, in statement mode
# what comes without BEGIN.
my $claim = q{SELECT claimed FROM ask('key-' || :n) \gset};
my $work = qq{\\if :claimed\nSELECT idem_finish('key-' || :n, work('key-' || :n));\n\\endif};
my $lease = q{SELECT claimed, token FROM ask('KEY-' || :n, '1 h', 'holder ' || :client) \gset};
my $steps = join "\n", map { qq{
	SELECT done::int FROM idem_step('flow-' || :n, '$_', token => :token) \\gset
	\\if :done
	\\else
	SELECT idem_step_finish('flow-' || :n, '$_', step_work('flow-' || :n, '$_'), token => :token);
	\\endif} } 'a', 'b';
my @behaviour = (
	[ 'plain', "BEGIN;\n$claim\n$work\nCOMMIT;" ],
	[ 'serializable', "BEGIN ISOLATION LEVEL SERIALIZABLE;\n$claim\n$work\nCOMMIT;" ],
	[ 'second_thoughts',
		"BEGIN;\nSAVEPOINT s;\n$claim\n$work\nROLLBACK TO s;\n$claim\n$work\nCOMMIT;" ],
	[ 'second_finish',
		"BEGIN;\n$claim\nSAVEPOINT s;\n$work\nROLLBACK TO s;\n$work\nCOMMIT;" ],
	[ 'undecided', "BEGIN;\n$claim\n$work\nROLLBACK;" ],
	[ 'forgetful', "BEGIN;\n$claim\n\\if :claimed\nSELECT work('key-' || :n);\n\\endif\nCOMMIT;" ],
	[ 'guarded', $lease =~ s/KEY/key/r . q{
		\if :claimed
		BEGIN;
		SELECT FROM idem_guard('key-' || :n, token => :token);
		SELECT idem_finish('key-' || :n, work('key-' || :n), token => :token);
		COMMIT;
		\endif} ],
	[ 'batch', q{
		SELECT batch('key-' || :n, 'key-' || (:n / 20 * 20),
					 'key-' || (:n / 20 * 20 + (:n + 7) % 20));} ],
	[ 'flow', $lease =~ s/KEY/flow/r . qq{
		\\if :claimed
		$steps
		SELECT idem_finish('flow-' || :n, work('flow-' || :n), token => :token);
		\\endif} ],
	[ 'single', q{
		SELECT CASE outcome WHEN 'claimed' THEN idem_finish('key-' || :n, work('key-' || :n))
			   ELSE response END
		  FROM idem_claim('key-' || :n);} ],
	[ 'once', q{
		INSERT INTO replay SELECT 'key-' || :n, response
		  FROM idem_once('key-' || :n, 'SELECT work($1)', ARRAY['key-' || :n])
		 WHERE outcome = 'replayed';} ]);
my %scripts;
for (@behaviour)
{
	my ($name, $sql) = @$_;
	append_to_file("$scratch/$name.sql", "SELECT pick() AS n \\gset\n$sql\n");
	my $weight = $name eq 'forgetful' ? 1 : 4;
	for my $mode (@modes)
	{
		push @{ $scripts{$mode} }, '-f', "$scratch/$name.sql\@$weight"
		  unless $mode eq 'statement' && $sql =~ /BEGIN/;
	}
}

# Twenty, four and four clients. In session mode a client keeps its server connection,
# and every pooler can do prepared statements.
my @protocols = ('simple', 'extended', $can_prepare ? 'prepared' : ());
my @clients = map { +{
		id => $_,
		mode => $_ <= 20 ? 'transaction' : $_ <= 24 ? 'session' : 'statement',
		protocol => $_ > 20 && $_ <= 24 ? 'prepared' : $protocols[ $_ % @protocols ]
	} } 1 .. 28;
my (%transactions, $retries, $started);

# One process each: a lost connection ends pgbench, and a new one takes its place,
# as a client would retry. They end by themselves now and then, for others to have
# their turn in session mode, and for a pooler that waits for that.
sub tend
{
	for my $client (@clients)
	{
		if ($client->{run})
		{
			$client->{run}->pump_nb;
			next if $client->{run}->pumpable;
			end_client($client);
		}
		start_client($client);
	}
	return;
}

sub start_client
{
	my ($client) = @_;

	$client->{out} = $client->{err} = '';
	$client->{run} = IPC::Run::start(
		pgbench(
			$client->{mode}, $client->{protocol},
			'-t', 50, '-D', "client=$client->{id}", '--max-tries', 1000,
			@{ $scripts{ $client->{mode} } }),
		'<', \'', '>', \$client->{out}, '2>', \$client->{err});
	$started++;
	return;
}

sub end_client
{
	my ($client) = @_;

	$client->{run}->finish;
	delete $client->{run};
	$transactions{"$client->{mode} $client->{protocol}"} += $1
	  if $client->{out} =~ /number of transactions actually processed: (\d+)/;
	$retries += $1 if $client->{out} =~ /total number of retries: (\d+)/;
	return;
}

# Let them work until they have done so much more: new work, and repeats.
my $watch = $node->background_psql('postgres', on_error_stop => 0);

sub progress
{
	my ($more) = @_;
	my $goal;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;

	while (1)
	{
		my @done = split /\|/, $watch->query_safe(
			'SELECT (SELECT count(*) FROM effect), (SELECT count(*) FROM replay)');
		$goal //= [ map { $_ + $more } @done ];
		last if $done[0] >= $goal->[0] && $done[1] >= $goal->[1];
		die 'the load stands still' if time > $deadline;
		tend();
		sleep 0.01;
	}
	return;
}

# One by one, and all of them at once.
my @small = (
	sub { $clients[ rand @clients ]->{run}->signal('KILL') },
	sub {
		$watch->query_safe(q{
			SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'
			 ORDER BY state = 'idle', random() LIMIT 1});
	});
my @great = (
	sub { console("KILL $_") for @modes; console("RESUME $_") for @modes },
	sub { stop_pooler('KILL'); start_pooler() },
	sub { console('RECONNECT') },
	sub { stop_pooler('TERM'); start_pooler() },
	sub {
		console('PAUSE');
		ok($node->poll_query_until('postgres',
			q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE usename = 'app')}),
			'load: a pause leaves no server connection');
		is(count($locks), 0, 'load: and no lock');
		console('RESUME');
	},
	sub { stop_pooler('INT'); start_pooler() });
for my $round (1 .. 2)
{
	for my $great (@great)
	{
		for (@small, $great)
		{
			progress(15);
			$_->();
		}
	}
}
progress(100);
for my $client (@clients)
{
	end_client($client) if $client->{run};
}
ok($node->poll_query_until('postgres',
	q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle')}),
	'load: is over');
is(count($locks), 0, 'load: no lock is left on a server connection');

# What nobody came to finish, because all who tried were cut off, is finished now;
# leases that their holders have left behind are over.
my $keys = 20 * (1 + $node->safe_psql('postgres', 'SELECT last_value / 100 FROM asked'));
$node->safe_psql('postgres', q{
	UPDATE idem_key SET lease_until = clock_timestamp() - interval '1 s'
	 WHERE state = 'p' AND key ~ '^(key|flow)-'});
is(ask('transaction', "CALL settle($keys)"), '', 'load: what was left is done');

note sprintf('%d s, %d clients: ', time - $began, scalar @clients), 2 * $keys, ' keys, ',
  count('replay'), " replays, $retries retries, $started clients started, ",
  count(q{idem_key WHERE key ~ '^(key|flow)-' AND attempt > 1}), ' leases left behind';
note join(', ', map {"$_: $transactions{$_}"} sort keys %transactions), ' transactions';

is(count(q{effect WHERE key ~ '^key-'}), $keys, "load: the work of $keys keys was done $keys times");
is(count(q{effect WHERE key ~ '^flow-'}), $keys, 'load: and that of as many flows');
is(count('(SELECT key FROM effect GROUP BY key HAVING count(*) <> 1) AS x'), 0,
	'load: the work of no key was done twice');
is(count('(SELECT key, step FROM step_effect GROUP BY 1, 2 HAVING count(*) <> 1) AS x'), 0,
	'load: nor that of a step');
is(count(q{step_effect WHERE key ~ '^flow-'}), 2 * $keys, 'load: there were as many steps');
is(count(q{(SELECT * FROM effect WHERE key ~ '^(key|flow)-') AS e
	FULL JOIN (SELECT * FROM idem_key WHERE key ~ '^(key|flow)-') AS k USING (key)
	WHERE e.response IS DISTINCT FROM k.response OR k.state <> 'f'}), 0,
	'load: each record is finished and has the response of its work');
is(count('replay AS r LEFT JOIN effect AS e USING (key)
	WHERE r.response IS DISTINCT FROM e.response'), 0, 'load: and each replay, too');
for my $mode (@modes)
{
	is(ask($mode, q{
		SELECT count(*) FROM effect AS e, idem_claim(e.key) AS c
		 WHERE e.key ~ '^(key|flow)-' AND c.outcome = 'replayed' AND c.response = e.response}),
		2 * $keys, "load: in $mode mode all are replayed");
}
is(ask('transaction', q{
	SELECT count(*) FROM step_effect AS e, idem_steps(e.key) AS s
	 WHERE e.key ~ '^flow-' AND e.step = s.step AND e.result = s.result}), 2 * $keys,
	'load: and each step has the result of its work');
for (sort keys %{ { map { ("$_->{mode} $_->{protocol}" => 1) } @clients } })
{
	cmp_ok($transactions{$_} // 0, '>', 0, "load: something was done in $_");
}

# The server connections of the load, all three at once: none has kept anything.
my @session = map { session('transaction') } 1 .. 3;
my @found = map { [ split /\|/, $_->query_safe("BEGIN; $find") ] } @session;
is(scalar(keys %{ { map { $_->[0] => 1 } @found } }), 3, 'load: three server connections');
is(join(' ', map { "$_->[1]|$_->[2]" } @found), join(' ', ($clean =~ s/^\d+\|//r) x 3),
	'load: none remembers a claim');
$_->query_safe('COMMIT') for @session;
$_->quit for @session;
is(count($locks), 0, 'load: nor has a lock');

# Nothing went wrong but what has to: a backend or its client was cut off, a
# transaction is to be retried, a finish was forgotten, or a lease was claimed again
# by what a killed client of the same name had left behind.
my (%seen, %strange);
my $errors = slurp_file($node->logfile, $log_offset);
while ($errors =~ /SQLSTATE=(\w+) (ERROR|FATAL|PANIC|WARNING):  (.*)/g)
{
	$seen{$1}++;
	$strange{"$1 $3"}++ unless $1 =~ /^(57P01|08006|40001|ID003|ID005)$/;
}
note join ', ', map { "$_: $seen{$_}" } sort keys %seen;
is(join("\n", sort keys %strange), '', 'no other error');
unlike($errors, qr/without claiming it|lost to another transaction/,
	'nobody wrote a record that was somebody else\'s');
unlike($errors, qr/TRAP|PANIC|terminated by signal/, 'the server did not crash');

$watch->quit;
stop_pooler('INT');
$node->stop;
done_testing();
