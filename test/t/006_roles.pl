# Two roles in sessions of their own, with the same keys at the same time: they
# neither block nor see each other, nor can they tell from pg_locks which key
# the other one works on. A SECURITY DEFINER wrapper makes them share.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('roles');
$node->init;
$node->append_conf('postgresql.conf', "statement_timeout = '60s'");
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION idempotency;
	CREATE ROLE ann LOGIN;
	CREATE ROLE bob LOGIN;
	CREATE ROLE watch LOGIN IN ROLE pg_monitor;
	CREATE ROLE shop LOGIN;
	GRANT CREATE ON SCHEMA public TO shop;
	SET SESSION AUTHORIZATION shop;
	CREATE FUNCTION shop_claim(key text, wait interval = NULL, OUT outcome text, OUT response jsonb)
		LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
		AS 'SELECT outcome, response FROM idem_claim(key, wait => wait)';
	CREATE FUNCTION shop_finish(key text, response jsonb) RETURNS jsonb
		LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
		AS 'SELECT idem_finish(key, response)';
});

sub session
{
	my ($role) = @_;
	return $node->background_psql('postgres', on_error_stop => 0,
		extra_params => [ '-U', $role ]);
}

my $locks = q{SELECT count(*), count(DISTINCT (classid, objid)) FROM pg_locks
	WHERE locktype = 'advisory' AND objsubid = 18756};

my ($ann, $bob, $watch) = map { session($_) } qw(ann bob watch);

# The same key, both claimed, neither waits.
for my $session ($ann, $bob)
{
	is($session->query_safe(q{
		BEGIN;
		SELECT outcome FROM idem_claim('k', wait => '0');}), 'claimed',
		'each claims a key of its own');
}
is($watch->query_safe($locks), '2|2', 'the locks of one key differ');
is($ann->query_safe(q{SELECT owner, state, key FROM idem_in_flight}),
	'ann|in_progress|k', 'ann sees her claim');
is($bob->query_safe(q{SELECT owner, state, key FROM idem_in_flight}),
	'bob|in_progress|k', 'bob his');
is($watch->query_safe(q{SELECT owner, state, scope, key FROM idem_in_flight ORDER BY owner::text}),
	"ann|in_progress||\nbob|in_progress||", 'pg_monitor both, but not their keys');
is($node->safe_psql('postgres', q{
	SELECT count(*) FROM idem_in_flight JOIN pg_stat_activity USING (pid)
	 WHERE usename = owner::text AND since = xact_start}), 2,
	'with process and time');
is($ann->query_safe(q{SELECT idem_finish('k', '"ann"')}), '"ann"', 'ann finishes');
is($bob->query_safe(q{SELECT idem_finish('k', '"bob"')}), '"bob"', 'bob finishes');
$_->query_safe('COMMIT') for $ann, $bob;
is($ann->query_safe(q{SELECT outcome, response FROM idem_claim('k')}),
	'replayed|"ann"', 'ann gets her response');
is($bob->query_safe(q{SELECT outcome, response FROM idem_claim('k')}),
	'replayed|"bob"', 'bob his');
is($node->safe_psql('postgres', q{SELECT outcome, idem_release('k') FROM idem_claim('k')}),
	'claimed|', 'a superuser none of them');

# Each sees the claims of its other sessions, as locks.
my $ann2 = session('ann');
$ann->query_safe(q{BEGIN; SELECT FROM idem_claim('x')});
is($ann2->query_safe(q{SELECT owner, state, key FROM idem_in_flight}),
	'ann|in_progress|', 'ann sees that she has a claim elsewhere');
is($bob->query_safe(q{SELECT count(*) FROM idem_in_flight}), 0, 'bob sees nothing');
is($ann2->query_safe(q{SELECT outcome FROM idem_claim('x', wait => '0')}),
	'in_progress', 'her other session finds the key busy');
is($bob->query_safe(q{BEGIN; SELECT outcome FROM idem_claim('x', wait => '0')}),
	'claimed', 'bob does not');
$_->query_safe('ROLLBACK') for $ann, $bob;

# Nobody can lock the key of somebody else by SQL, not even by reading its
# lock in pg_locks: advisory locks of SQL are of another class.
$ann->query_safe(q{BEGIN; SELECT FROM idem_claim('y')});
is($bob->query_safe(q{
	SELECT bool_and(pg_try_advisory_lock((classid::bigint << 32) | objid::bigint))
	  FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 18756}), 't',
	'an advisory lock on the same bits is another lock');
is($ann->query_safe(q{SELECT idem_finish('y', '1')}), '1', 'the claim does not notice');
$ann->query_safe(q{SELECT pg_advisory_unlock_all()});
$ann->query_safe('COMMIT');
is($ann2->query_safe(q{SELECT outcome, response FROM idem_claim('y', wait => '0')}),
	'replayed|1', 'nor does anybody else');

# Shared through the wrapper: one key, whoever comes.
is($ann->query_safe(q{BEGIN; SELECT outcome FROM shop_claim('order')}), 'claimed',
	'ann claims through the wrapper');
is($bob->query_safe(q{SELECT outcome FROM shop_claim('order', '0')}),
	'in_progress', 'bob finds it busy');
is($bob->query_safe(q{BEGIN; SELECT outcome FROM idem_claim('order', wait => '0')}), 'claimed',
	'but not beside the wrapper');
$bob->query_safe('ROLLBACK');
$bob->query_until(qr/waiting/, qq{
	\\echo waiting
	SELECT 'answer: ' || outcome || response FROM shop_claim('order');
	\\echo answered
});
ok($node->poll_query_until('postgres', q{
	SELECT count(*) = 1 FROM pg_locks
	 WHERE locktype = 'advisory' AND objsubid = 18756 AND NOT granted}),
	'he waits');
is($ann->query_safe(q{SELECT shop_finish('order', '"sold"')}), '"sold"', 'she finishes');
$ann->query_safe('COMMIT');
like($bob->query_until(qr/answered/, ''), qr/answer: replayed"sold"/, 'he gets her response');

$_->quit for $ann, $ann2, $bob, $watch;
$node->stop;
done_testing();
