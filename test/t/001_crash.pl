# A holder that dies, in whatever way, blocks its key no longer than it lives,
# and leaves nothing half done. What was committed stays committed.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Restart;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('crash');
$node->init;
$node->append_conf('postgresql.conf', <<'EOT');
max_prepared_transactions = 10
restart_after_crash = on
statement_timeout = '120s'
EOT
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION idempotency;
	CREATE TABLE effect (key text, response jsonb);
});

# Sessions that lost their server; kept, so that nobody waits for them.
my @lost;

# A session that has begun to work on a key, and finished it if asked.
sub holder
{
	my ($key, $finished) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $outcome = $session->query_safe(qq{
		BEGIN;
		INSERT INTO effect VALUES ('$key', '"lost"');
		SELECT outcome FROM idem_claim('$key');
	});
	is($outcome, 'claimed', "$key: claimed by the holder");
	$session->query_safe(qq{SELECT idem_finish('$key', '"lost"')}) if $finished;
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	return ($session, $pid);
}

sub claim
{
	my ($key, $wait) = @_;
	return $node->safe_psql('postgres', qq{
		BEGIN;
		SELECT outcome, response FROM idem_claim('$key', wait => $wait);
		ROLLBACK;
	});
}

sub effects
{
	my ($key) = @_;
	return $node->safe_psql('postgres',
		qq{SELECT count(*) FROM effect WHERE key = '$key'});
}

# Nobody holds the key, and a rival can do all of the work.
sub is_free
{
	my ($key, $how) = @_;
	is(claim($key, q{'0'}), 'claimed|', "$how: the key is free");
	is(effects($key), 0, "$how: the work is undone");
	is($node->safe_psql('postgres', qq{
		BEGIN;
		SELECT outcome FROM idem_claim('$key');
		INSERT INTO effect VALUES ('$key', '"done"');
		SELECT idem_finish('$key', '"done"');
		COMMIT;
	}), "claimed\n\"done\"", "$how: a rival does the work");
	is(claim($key, 'NULL'), 'replayed|"done"', "$how: which is replayed");
	is(effects($key), 1, "$how: and was done once");
	return;
}

# The backend is told to go: while it works, and when it has finished.

for my $finished (0, 1)
{
	my $key = $finished ? 'terminated finished' : 'terminated';
	my ($session, $pid) = holder($key, $finished);

	is(claim($key, q{'0'}), 'in_progress|', "$key: busy for a rival");

	# One who waits for the key gets it when the holder has gone.
	my $waiting = $node->background_psql('postgres', on_error_stop => 0);
	$waiting->query_until(qr/waiting/, qq{
		\\echo waiting
		BEGIN;
		SELECT 'answer: ' || outcome FROM idem_claim('$key');
		\\echo answered
	});
	ok($node->poll_query_until('postgres', q{
		SELECT count(*) = 1 FROM pg_locks
		 WHERE locktype = 'advisory' AND objsubid = 18756 AND NOT granted
	}), "$key: a rival waits in the lock queue");
	is($node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)"),
		't', "$key: the holder is terminated");
	like($waiting->query_until(qr/answered/, ''), qr/answer: claimed/,
		"$key: the rival gets the key");
	$waiting->query_safe('ROLLBACK');
	$waiting->quit;
	is_free($key, $key);
	push @lost, $session;
}

# The backend is killed: all of the server starts anew.

for my $finished (0, 1)
{
	my $key = $finished ? 'killed finished' : 'killed';
	my ($session, $pid) = holder($key, $finished);

	is(kill('KILL', $pid), 1, "$key: the backend is killed");
	ok(wait_for($node, qq{
		SELECT pg_postmaster_start_time() < now() AND NOT EXISTS
			(SELECT FROM pg_stat_activity WHERE pid = $pid)
	}), "$key: the server is back");
	is_free($key, $key);
	push @lost, $session;
}

# The server goes down at once, with claims in every state. The last session
# commits durably, so the sessions before it have their WAL on disk, too.

my ($pending) = holder('pending', 0);
my ($finished) = holder('finished', 1);
push @lost, $pending, $finished;

is($node->safe_psql('postgres', q{
	BEGIN;
	SELECT outcome FROM idem_claim('prepared');
	INSERT INTO effect VALUES ('prepared', '"kept"');
	SELECT idem_finish('prepared', '"kept"');
	PREPARE TRANSACTION 'p';
}), "claimed\n\"kept\"", 'prepared: finished and prepared');
is($node->safe_psql('postgres', q{
	BEGIN;
	SELECT outcome FROM idem_claim('undecided');
	INSERT INTO effect VALUES ('undecided', '"lost"');
	SELECT idem_finish('undecided', '"lost"');
	PREPARE TRANSACTION 'u';
}), "claimed\n\"lost\"", 'undecided: the same');
is($node->safe_psql('postgres', q{
	BEGIN;
	SELECT outcome FROM idem_claim('committed', request => '{"a": 1}');
	INSERT INTO effect VALUES ('committed', '"kept"');
	SELECT idem_finish('committed', '"kept"');
	COMMIT;
}), "claimed\n\"kept\"", 'committed: finished and committed');

$node->stop('immediate');
$node->start;

is_free('pending', 'pending claim, immediate stop');
is_free('finished', 'finished claim, immediate stop');
is(claim('committed', q{'0'}), 'replayed|"kept"', 'committed: replayed');
is(effects('committed'), 1, 'committed: the work is there');
is($node->safe_psql('postgres', q{
	SELECT outcome FROM idem_claim('committed', request => '{"a": 2}')
}), 'mismatch', 'committed: the fingerprint is there');

for my $again ('', ' and another restart')
{
	for my $key ('prepared', 'undecided')
	{
		is(claim($key, q{'0'}), 'in_progress|',
			"$key: holds its key after a restart$again");
		is(claim($key, q{'50ms'}), 'in_progress|',
			"$key: however long one waits$again");
		is(effects($key), 0, "$key: the work is not to be seen$again");
	}
	is($node->safe_psql('postgres', q{
		SELECT prepared, pid, owner = current_user::regrole, state, key
		  FROM idem_in_flight ORDER BY prepared
	}), "p||t|in_progress|\nu||t|in_progress|",
		"both are in idem_in_flight by their names$again");
	$node->restart unless $again;
}
$node->safe_psql('postgres', q{COMMIT PREPARED 'p'});
$node->safe_psql('postgres', q{ROLLBACK PREPARED 'u'});
is(claim('prepared', 'NULL'), 'replayed|"kept"', 'prepared: replayed after COMMIT PREPARED');
is(effects('prepared'), 1, 'prepared: the work is there');
is_free('undecided', 'undecided: after ROLLBACK PREPARED');

is($node->safe_psql('postgres', 'SELECT count(*) FROM idem_in_flight'), 0,
	'nothing is left in flight');
is($node->safe_psql('postgres', q{
	SELECT count(*) FROM effect AS e FULL JOIN idem_key AS k USING (key)
	 WHERE e.response IS DISTINCT FROM k.response
}), 0, 'works and records match one to one');

$node->stop;
done_testing();
