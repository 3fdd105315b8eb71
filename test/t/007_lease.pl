# A lease outlives everything but its own end: the backend that took it, the
# server, the connection. And it does not outlive what it must not: a lease that
# was lost with a primary is worth nothing on the promoted standby.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Restart;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1);
$primary->append_conf('postgresql.conf', <<'EOT');
restart_after_crash = on
statement_timeout = '120s'
EOT
$primary->start;
$primary->safe_psql('postgres', q{
	CREATE EXTENSION idempotency;
	CREATE TABLE effect (key text, who text);
});

# Sessions that lost their server; kept, so that nobody waits for them.
my @lost;

# (outcome, attempt, token) of a leased claim.
sub claim
{
	my ($node, $key, $lease) = @_;
	$lease //= '1 h';
	return split /\|/, $node->safe_psql('postgres',
		"SELECT outcome, attempt, token FROM idem_claim('$key', lease => '$lease')"), -1;
}

# The effect and the finish in one transaction, with a guard before them. The
# SQLSTATE if it is refused, else 'done'.
sub work
{
	my ($node, $key, $token, $who) = @_;
	my ($out, $err);
	my $status = $node->psql('postgres', qq{
		\\set VERBOSITY sqlstate
		BEGIN;
		SELECT FROM idem_guard('$key', token => $token);
		INSERT INTO effect VALUES ('$key', '$who');
		SELECT idem_finish('$key', '"$who"', token => $token);
		COMMIT;
	}, stdout => \$out, stderr => \$err);
	return 'done' if $status == 0;
	return $err =~ /ERROR:  (\w{5})/ ? $1 : "status $status: $err";
}

sub run_out
{
	my ($node, $key) = @_;
	$node->safe_psql('postgres', qq{
		UPDATE idem_key SET lease_until = clock_timestamp() - interval '1 s'
		 WHERE key = '$key'});
	return;
}

sub effects
{
	my ($node, $key) = @_;
	return $node->safe_psql('postgres',
		"SELECT string_agg(who, ' ') FROM effect WHERE key = '$key'");
}

# The holder's backend goes after the claim's commit: before its outside call,
# and after it, in the midst of the transaction that writes the effect down. It
# is told to go, or killed, which takes the whole server down.

for my $how ('terminated', 'killed')
{
	for my $when ('before', 'after')
	{
		my $key = "$how $when";
		my $session = $primary->background_psql('postgres', on_error_stop => 0);
		my ($outcome, $token, $pid) = split /\|/, $session->query_safe(
			"SELECT outcome, token, pg_backend_pid() FROM idem_claim('$key', lease => '1 h')");
		is($outcome, 'claimed', "$key: a lease");
		if ($when eq 'after')
		{
			$session->query_safe(qq{
				BEGIN;
				SELECT idem_guard('$key', token => $token) \\g /dev/null
				INSERT INTO effect VALUES ('$key', 'lost');
				SELECT idem_finish('$key', '"lost"', token => $token) \\g /dev/null
			});
		}
		if ($how eq 'killed')
		{
			is(kill('KILL', $pid), 1, "$key: the backend is killed");
		}
		else
		{
			is($primary->safe_psql('postgres', "SELECT pg_terminate_backend($pid)"),
				't', "$key: the backend is terminated");
		}
		ok(wait_for($primary, qq{
			SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)
		}), "$key: it has gone");
		push @lost, $session;

		is((claim($primary, $key))[0], 'in_progress', "$key: the lease lives on");
		is(effects($primary, $key), '', "$key: nothing is done");
		run_out($primary, $key);
		my ($again, $attempt, $heir) = claim($primary, $key);
		is("$again $attempt", 'claimed 2', "$key: taken over when it has run out");
		is(work($primary, $key, $token, 'ghost'), 'ID003', "$key: the dead one's token is void");
		is(work($primary, $key, $heir, 'heir'), 'done', "$key: the heir does the work");
		is(effects($primary, $key), 'heir', "$key: once");
		is(work($primary, $key, $token, 'ghost'), 'ID003',
			"$key: and the dead one's token stays void");
	}
}

# The server goes down at once; leases and tokens are still there.

my %token;
for my $key ('finishes', 'renews', 'is overdue', 'is taken over')
{
	(my $outcome, my $attempt, $token{$key}) = claim($primary, $key);
	is($outcome, 'claimed', "a lease that $key");
}
$primary->stop('immediate');
$primary->start;
is($primary->safe_psql('postgres',
	q{SELECT count(*) FROM idem_in_flight WHERE remaining > '55 min' AND NOT overdue}),
	4, 'after an immediate stop all leases are in flight');
is((claim($primary, 'finishes'))[0], 'in_progress', 'and live');
is(work($primary, 'finishes', $token{'finishes'}, 'holder'), 'done',
	'the token finishes after the restart');
is($primary->safe_psql('postgres', q{SELECT outcome, response FROM idem_claim('finishes')}),
	'replayed|"holder"', 'which is replayed');
is($primary->safe_psql('postgres', qq{
	SELECT idem_renew('renews', '3 h', token => $token{'renews'}) > clock_timestamp() + interval '2 h'}),
	't', 'the token renews after the restart');
run_out($primary, $_) for 'is overdue', 'is taken over';
is(work($primary, 'is overdue', $token{'is overdue'}, 'late'), 'done',
	'a late finish is welcome after the restart');
my ($outcome, $attempt, $heir) = claim($primary, 'is taken over');
is("$outcome $attempt", 'claimed 2', 'a takeover after the restart');
is(work($primary, 'is taken over', $token{'is taken over'}, 'stale'), 'ID003',
	'fences the former holder');
$primary->restart;
is(work($primary, 'is taken over', $token{'is taken over'}, 'stale'), 'ID003',
	'also after another restart');
is(work($primary, 'is taken over', $heir, 'heir'), 'done', 'not the new one');
is(effects($primary, 'is taken over'), 'heir', 'whose work it is');

# A standby that lags is promoted. It has received the first lease of "fenced",
# but neither its takeover, nor "lost" at all, nor the finish of "finished".

$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
for my $key ('kept', 'fenced', 'finished')
{
	(my $outcome, my $attempt, $token{$key}) = claim($primary, $key);
	is($outcome, 'claimed', "$key: a lease on the primary");
}
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('flush'));
is($standby->safe_psql('postgres', q{
	SELECT state, attempt, lease_until > clock_timestamp() FROM idem_lookup('kept')}),
	'in_progress|1|t', 'kept: seen on the standby');
is($standby->safe_psql('postgres', q{SELECT count(*) FROM idem_in_flight WHERE key = 'kept'}), 1,
	'kept: and in idem_in_flight there');
for my $command (
	q{SELECT * FROM idem_claim('new', lease => '1 h')},
	qq{SELECT idem_finish('kept', token => $token{'kept'})},
	qq{SELECT idem_fail('kept', token => $token{'kept'})},
	qq{SELECT idem_release('kept', token => $token{'kept'})},
	qq{SELECT idem_renew('kept', '1 h', token => $token{'kept'})},
	qq{SELECT idem_guard('kept', token => $token{'kept'})},
	q{SELECT idem_resolve('kept')})
{
	my ($out, $err);
	$standby->psql('postgres', "\\set VERBOSITY sqlstate\n$command",
		stdout => \$out, stderr => \$err);
	like($err, qr/ERROR:  25006$/, "standby: 25006 for $command");
}

# From now on nothing gets there.
$standby->stop;
(undef, undef, $token{lost}) = claim($primary, 'lost');
run_out($primary, 'fenced');
(undef, $attempt, $token{'fenced 2'}) = claim($primary, 'fenced');
is($attempt, 2, 'fenced: taken over on the primary');
is(work($primary, 'finished', $token{finished}, 'primary'), 'done',
	'finished: done on the primary');
$primary->stop('immediate');
$standby->start;
$standby->promote;

is(work($standby, 'kept', $token{kept}, 'holder'), 'done',
	'kept: the token finishes after the promotion');
is((claim($standby, 'kept'))[0], 'replayed', 'kept: which is replayed');
is(work($standby, 'lost', $token{lost}, 'stale'), 'ID003',
	'lost: the token of a lease that the standby never saw is refused');
($outcome, $attempt, $heir) = claim($standby, 'lost');
is("$outcome $attempt", 'claimed 1', 'lost: a new claim succeeds');
isnt($heir, $token{lost}, 'lost: with another token');
is(work($standby, 'lost', $token{lost}, 'stale'), 'ID003',
	'lost: the old one is refused, though the attempt is the same');
is(work($standby, 'lost', $heir, 'heir'), 'done', 'lost: the new one is not');
is(effects($standby, 'lost'), 'heir', 'lost: done once');

is(work($standby, 'fenced', $token{'fenced 2'}, 'stale'), 'ID003',
	'fenced: the token of the takeover was lost with the primary');
run_out($standby, 'fenced');
($outcome, $attempt, $heir) = claim($standby, 'fenced');
is("$outcome $attempt", 'claimed 2', 'fenced: taken over once more, with the same attempt');
is(work($standby, 'fenced', $_, 'stale'), 'ID003', 'fenced: the old tokens are refused')
  for $token{fenced}, $token{'fenced 2'};
is(work($standby, 'fenced', $heir, 'heir'), 'done', 'fenced: the new one is not');

# Nothing can help what was lost with its effect: both are gone together.
is(effects($standby, 'finished'), '', 'finished: lost, effect and all');
is(work($standby, 'finished', $token{finished}, 'holder'), 'done',
	'finished: so its holder may finish again');
is(effects($standby, 'finished'), 'holder', 'finished: done once');

$standby->stop;
done_testing();
