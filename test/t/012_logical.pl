# Logical replication of idem_key and idem_step, and a switchover to the subscriber:
# what was finished is replayed there, a lease is still guarded by its token, a step
# that was done is done, what has expired may be claimed. Then the same under load.
#
# Roles have other OIDs on the subscriber: owners travel by name. What does not
# travel, and what must not be done on a subscriber, is shown, too.
#
# IDEM_STORM_SECONDS says how long the clients work before the switchover.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Clients;

my $seconds = $ENV{IDEM_STORM_SECONDS} || 3;

my ($old, $new) = map { PostgreSQL::Test::Cluster->new($_) } 'old', 'new';
for my $node ($old, $new)
{
	$node->init(allows_streaming => 'logical');
	$node->append_conf('postgresql.conf', Clients::conf() . "wal_retrieve_retry_interval = '100ms'\n");
	$node->start;
	$node->safe_psql('postgres', 'CREATE ROLE filler') if $node == $old;
	Clients::setup($node);
	$node->safe_psql('postgres', q{CREATE ROLE "Ann's role" LOGIN; CREATE DATABASE shop});
	$node->safe_psql('shop', q{
		CREATE EXTENSION idempotency;
		CREATE TABLE effect (key text, who text);
		GRANT ALL ON effect TO PUBLIC});
}
my $oid = q{SELECT 'app'::regrole::oid};
isnt($old->safe_psql('postgres', $oid), $new->safe_psql('postgres', $oid), 'roles have other OIDs on the subscriber');

# As a role that owns keys.
sub as
{
	my ($role, $node, $sql) = @_;
	return $node->safe_psql('shop', "SET SESSION AUTHORIZATION $role;\n$sql");
}

sub app { return as('app', @_) }
sub ann { return as(q{"Ann's role"}, @_) }

# The SQLSTATE of what fails.
sub refused
{
	my ($node, $sql) = @_;
	my ($out, $err);
	my $status = $node->psql('shop', "SET SESSION AUTHORIZATION app;\n\\set VERBOSITY sqlstate\n$sql",
		stdout => \$out, stderr => \$err);
	return $err =~ /ERROR:  (\w{5})/ ? $1 : "status $status: $out$err";
}

sub lease
{
	my ($node, $key, $takeover) = @_;
	$takeover //= 'rerun';
	return app($node, "SELECT token FROM idem_claim('$key', lease => '1 h', takeover => '$takeover')");
}

sub run_out
{
	my ($node, $key) = @_;
	$node->safe_psql('shop', "UPDATE idem_key SET lease_until = clock_timestamp() WHERE key = '$key'");
	return;
}

sub subscribe
{
	my ($database, @tables) = @_;
	$old->safe_psql($database, "CREATE PUBLICATION $database FOR TABLE " . join ', ', @tables);
	$new->safe_psql($database, sprintf q{CREATE SUBSCRIPTION %s CONNECTION '%s dbname=%s' PUBLICATION %s},
		$database, $old->connstr, $database, $database);
	return;
}

# The subscriber has all that is committed on the old server.
sub catch_up
{
	my ($database) = @_;
	$new->wait_for_subscription_sync($old, $database, $database);
	return;
}

# One key in every state: before the initial copy, and again for the stream. Keys
# called "later" go on changing.

my %token;

sub make_keys
{
	my ($how) = @_;

	for my $role ('app', q{"Ann's role"})
	{
		as($role, $old, qq{
			BEGIN;
			SELECT FROM idem_claim('paid $how', request => '{"amount": 10.0}');
			INSERT INTO effect VALUES ('paid $how', current_user);
			SELECT idem_finish('paid $how', to_jsonb(current_user));
			COMMIT});
	}
	app($old, qq{
		SELECT idem_finish('big $how', (SELECT jsonb_agg(gen_random_uuid()) FROM generate_series(1, 1000)))
		  FROM idem_claim('big $how');
		BEGIN; SELECT FROM idem_claim('short $how', ttl => '1 ms'); SELECT idem_step_finish('short $how', 'one', '"old"');
		SELECT idem_finish('short $how'); COMMIT;
		BEGIN; SELECT FROM idem_claim('due $how'); SELECT idem_fail('due $how', '"later"', retry_in => '1 h'); COMMIT;
		BEGIN; SELECT FROM idem_claim('over $how'); SELECT idem_fail('over $how', '"never"', final => true); COMMIT;
		BEGIN; SELECT FROM idem_claim('steps $how'); SELECT idem_step_finish('steps $how', 'one', '1');
		SELECT idem_finish('steps $how', '2'); COMMIT;
		SELECT idem_finish(key, to_jsonb(key)) FROM idem_claim('later expired $how', ttl => '1 ms'), (VALUES ('later expired $how')) AS k (key);
		SELECT idem_finish(key, to_jsonb(key)) FROM idem_claim('later forgotten $how'), (VALUES ('later forgotten $how')) AS k (key)});
	$token{"$_ $how"} = lease($old, "$_ $how")
	  for 'leased', 'overtaken', 'flow', 'later finished', 'later renewed', 'later overtaken', 'later released';
	$token{"held $how"} = lease($old, "held $how", 'hold');
	app($old, "SELECT idem_step_finish('$_ $how', 'one', '\"done\"', request => '[1]', token => $token{qq{$_ $how}})")
	  for 'flow', 'later released';
	return;
}

# All that is stored; owners have names in it.
my @stored = (q{SELECT * FROM idem_key ORDER BY key, owner::text}, q{SELECT * FROM idem_step ORDER BY generation, step});

sub same
{
	my ($database, $how) = @_;
	is($new->safe_psql($database, $_), $old->safe_psql($database, $_), "$how: the same rows by " . s/ ORDER.*//r)
	  for @stored;
	is($new->safe_psql($database, q{
		SELECT (SELECT count(*) > 0 FROM idem_key),
			   (SELECT count(*) FROM idem_step WHERE generation NOT IN
					(SELECT generation FROM idem_key WHERE generation IS NOT NULL))}), 't|0',
		"$how: no step without its key");
	return;
}

make_keys('copied');
subscribe('shop', 'effect', 'idem_key', 'idem_step');
catch_up('shop');
same('shop', 'initial copy');
is(as($_, $new, q{SELECT state, response = to_jsonb(current_user) FROM idem_lookup('paid copied')}), 'finished|t',
	"initial copy: $_ finds its own")
  for 'app', q{"Ann's role"};
make_keys('streamed');

# More than a transaction may lock: most of them are written twice.
app($old, q{
	BEGIN;
	SELECT count(*) FROM idem_claim_many(ARRAY(SELECT 'batch ' || i FROM generate_series(1, 100) AS i));
	SELECT count(*) FROM idem_finish_many(ARRAY(SELECT 'batch ' || i FROM generate_series(1, 100) AS i));
	COMMIT});

for my $how ('copied', 'streamed')
{
	app($old, qq{
		SELECT idem_finish('later finished $how', '"by the holder"', token => $token{"later finished $how"});
		SELECT idem_renew('later renewed $how', '3 h', token => $token{"later renewed $how"});
		SELECT idem_release('later released $how', token => $token{"later released $how"});
		SELECT idem_forget('later forgotten $how');
		SELECT idem_finish('later expired $how', '"again"') FROM idem_claim('later expired $how')});
	run_out($old, "later overtaken $how");
	$token{"heir $how"} = lease($old, "later overtaken $how");
}
catch_up('shop');
same('shop', 'stream');

# What must not be done on a subscriber as long as it is one. Keys that are claimed
# there stand in the way of those that arrive, until they are forgotten ...

app($new, q{SELECT idem_finish('both', '"new"') FROM idem_claim('both')});
app($old, q{SELECT idem_finish('both', '"old"') FROM idem_claim('both')});
$new->wait_for_log(qr/unique (?:constraint|index) "idem_key_pkey"/);	# index: since PostgreSQL 18
is(app($new, q{SELECT idem_forget('both')}), 't', 'claimed on both sides: forgotten on the subscriber');
catch_up('shop');
is(app($new, q{SELECT outcome, response FROM idem_claim('both')}), 'replayed|"old"',
	'claimed on both sides: the stream goes on');

# ... and a claim there is not safe from what arrives, but finds out.
my $rival = $new->background_psql('shop', on_error_stop => 0);
$rival->query_safe(q{SET SESSION AUTHORIZATION app; BEGIN; SELECT FROM idem_claim('race')});
app($old, q{SELECT idem_finish('race', '"old"') FROM idem_claim('race')});
catch_up('shop');
$rival->query('\set VERBOSITY sqlstate');
$rival->query(q{SELECT idem_finish('race', '"new"')});
like($rival->{stderr}, qr/ERROR:  40001$/, 'a row that arrives under a claim: 40001');
$rival->{stderr} = '';
is($rival->query(q{ROLLBACK; SELECT outcome, response FROM idem_claim('race')}), 'replayed|"old"', 'and a retry replays');
$rival->quit;

# A key that has expired there is updated when it is claimed anew here: if the
# subscriber has removed it by itself, its next life never arrives.
ann($old, q{SELECT idem_finish('swept', '1') FROM idem_claim('swept', ttl => '1 ms')});
catch_up('shop');
is(ann($new, 'SELECT idem_expire()'), 1, 'swept: an expired row is removed on the subscriber');
ann($old, q{SELECT idem_finish('swept', '2') FROM idem_claim('swept')});
catch_up('shop');
is(ann($_, q{SELECT response FROM idem_lookup('swept')}), $_ == $old ? '2' : '',
	'swept: the next life on ' . $_->name)
  for $old, $new;
ann($old, q{SELECT idem_forget('swept')});

# A role that is missing holds up the stream until it is created.
$old->safe_psql('shop', 'CREATE ROLE newcomer');
as('newcomer', $old, q{SELECT idem_finish('paid copied', '"newcomer"') FROM idem_claim('paid copied')});
$new->wait_for_log(qr/role "newcomer" does not exist/);
$new->safe_psql('shop', 'CREATE ROLE newcomer');
catch_up('shop');
is(as('newcomer', $new, q{SELECT outcome, response FROM idem_claim('paid copied')}), 'replayed|"newcomer"',
	'a role that came late');

# The switchover. From now on the clients come to the subscriber.
catch_up('shop');
$new->safe_psql('shop', 'DROP SUBSCRIPTION shop');
isnt($new->safe_psql('shop', 'SELECT secret FROM idem_secret'), $old->safe_psql('shop', 'SELECT secret FROM idem_secret'),
	'the secret does not travel');

for my $how ('copied', 'streamed')
{
	my $t = \%token;

	for my $role ('app', q{"Ann's role"})
	{
		is(as($role, $new, qq{
			SELECT outcome, response = to_jsonb(current_user) FROM idem_claim('paid $how', request => '{"amount": 10}');
			SELECT outcome FROM idem_claim('paid $how', request => '{"amount": 11}');
			SELECT who FROM effect WHERE key = 'paid $how' AND who = current_user}),
			"replayed|t\nmismatch\n" . $role =~ s/"//gr, "$how: finished by $role");
	}
	is(app($new, "SELECT outcome, response FROM idem_claim('big $how')"),
		app($old, "SELECT outcome, response FROM idem_claim('big $how')"), "$how: a response of " .
		length(app($old, "SELECT response FROM idem_lookup('big $how')")) . ' bytes');
	is(app($new, qq{
		SELECT outcome, response FROM idem_claim('due $how');
		SELECT outcome, response FROM idem_claim('over $how');
		SELECT outcome, response FROM idem_claim('steps $how');
		SELECT step, result FROM idem_steps('steps $how')}),
		qq(retry_later|"later"\nfailed|"never"\nreplayed|2\none|1), "$how: failed, and finished in steps");
	is(app($new, qq{
		BEGIN;
		SELECT outcome FROM idem_claim('short $how');
		SELECT done FROM idem_step('short $how', 'one');
		SELECT idem_finish('short $how', '"new"');
		COMMIT;
		SELECT outcome, response FROM idem_claim('short $how')}), qq(claimed\nf\n"new"\nreplayed|"new"),
		"$how: what has expired is done anew, steps and all");

	is(app($new, "SELECT outcome FROM idem_claim('leased $how', lease => '1 h')"), 'in_progress', "$how: a lease is live");
	is(refused($new, "SELECT idem_guard('leased $how', token => 1)"), 'ID003', "$how: guarded");
	is(app($new, qq{
		BEGIN;
		SELECT FROM idem_guard('leased $how', token => $$t{"leased $how"});
		SELECT idem_finish('leased $how', '"holder"', token => $$t{"leased $how"});
		COMMIT;
		SELECT outcome, response FROM idem_claim('leased $how')}), qq("holder"\nreplayed|"holder"),
		"$how: its holder finishes");
	run_out($new, "$_ $how") for 'overtaken', 'held', 'flow';
	is(app($new, "SELECT outcome, attempt FROM idem_claim('overtaken $how', lease => '1 h')"), 'claimed|2',
		"$how: a lease is taken over");
	is(refused($new, qq{SELECT idem_finish('overtaken $how', token => $$t{"overtaken $how"})}), 'ID003',
		"$how: from its former holder");
	is(app($new, qq{
		SELECT outcome FROM idem_claim('held $how');
		SELECT idem_resolve('held $how', '"found"');
		SELECT outcome, response FROM idem_claim('held $how')}), qq(held\n\nreplayed|"found"), "$how: held, resolved");
	is(app($new, qq{
		BEGIN;
		SELECT outcome, attempt FROM idem_claim('flow $how');
		SELECT done, result FROM idem_step('flow $how', 'one', request => '[1]');
		SELECT done FROM idem_step('flow $how', 'two');
		SELECT idem_step_finish('flow $how', 'two', '"new"');
		SELECT idem_finish('flow $how', '3');
		COMMIT}), qq(claimed|2\nt|"done"\nf\n"new"\n3), "$how: a flow goes on");

	is(app($new, qq{
		SELECT outcome, response FROM idem_claim('later finished $how');
		SELECT lease_until > clock_timestamp() + interval '2 h' FROM idem_lookup('later renewed $how');
		SELECT outcome, response FROM idem_claim('later expired $how')}),
		qq(replayed|"by the holder"\nt\nreplayed|"again"), "$how: what became of keys later");
	is(refused($new, qq{SELECT idem_finish('later overtaken $how', token => $$t{"later overtaken $how"})}), 'ID003',
		"$how: a takeover on the old server fences on the new one");
	is(app($new, qq{SELECT idem_finish('later overtaken $how', '"heir"', token => $$t{"heir $how"})}), '"heir"',
		"$how: in favour of the heir");
	for my $gone ('forgotten', 'released')
	{
		is(app($new, qq{
			BEGIN;
			SELECT outcome, attempt FROM idem_claim('later $gone $how');
			SELECT done FROM idem_step('later $gone $how', 'one');
			ROLLBACK}), "claimed|1\nf", "$how: $gone, steps and all");
	}
}
is(app($new, q{
	SELECT DISTINCT outcome FROM idem_claim_many(ARRAY(SELECT 'batch ' || i FROM generate_series(1, 100) AS i))}),
	'replayed', 'a batch is replayed');

# Claims find their rows by the index of the subscriber, and write theirs.
is($new->safe_psql('shop', q{
	BEGIN;
	SET LOCAL SESSION AUTHORIZATION app;
	SELECT outcome FROM idem_claim('here');
	SELECT idem_finish('here', '1');
	SELECT outcome FROM idem_claim('paid streamed');
	RESET SESSION AUTHORIZATION;
	SELECT seq_scan, idx_scan > 0, n_tup_ins FROM pg_stat_xact_user_tables WHERE relname = 'idem_key';
	COMMIT}), "claimed\n1\nreplayed\n0|t|1", 'claims use the index, and write a row');
app($new, q{SELECT idem_finish('gone') FROM idem_claim('gone', ttl => '1 ms')});
cmp_ok(app($new, q{SELECT idem_expire()}), '>', 0, 'expiry');
is($new->safe_psql('shop', q{
	SELECT count(*) FROM idem_key WHERE expires_at < clock_timestamp() AND owner = 'app'::regrole AND state <> 'p'}), 0,
	'whatever has expired can be removed');

# Under load: the tables are copied, the stream follows, and in the midst of work the
# clients are thrown out of the old server.

my $clients = Clients->new(6);
$clients->load($old, $seconds);
$clients->finish;

# A subscription does not begin as long as there are prepared transactions.
is(join(' ', $clients->decide($old, 1)), '', 'prepared transactions are decided before the subscription');
subscribe('postgres', 'effect', 'idem_key', 'idem_step');
{
	local $clients->{mortal} = 0;
	$clients->load($old, 0, sub {
		return $new->safe_psql('postgres', q{SELECT count(*) = 0 FROM pg_subscription_rel WHERE srsubstate <> 'r'}) eq 't'});
}
$clients->load($old, $seconds);
$old->safe_psql('postgres', q{
	ALTER ROLE app NOLOGIN;
	SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'});
$clients->lose;

# Prepared transactions stay behind, unless they are decided before.
is(join(' ', $clients->decide($old, 1)), '', 'and before the switchover');
catch_up('postgres');
same('postgres', 'switchover under load');
$new->safe_psql('postgres', 'DROP SUBSCRIPTION postgres');

is($clients->recover($new, $clients->told, 0), 0, 'nothing is lost');
$clients->retry($new);
$clients->check($new);

$old->stop;
$new->stop;
done_testing();
