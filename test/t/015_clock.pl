# The clock of the machine is stepped back while a claim waits for a lease, for so
# long and no longer: the wait does not grow by the step. The clock is that of
# test/torture/machine.c.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('clock');
my $clock = $node->basedir . '/clock';
my $machine = $node->basedir . '/machine.so';

# So many seconds off, for all processes at once.
sub set_clock
{
	my ($offset) = @_;
	open(my $file, -e $clock ? '+<' : '>', $clock) or die "$clock: $!";
	syswrite($file, pack('q', $offset * 1_000_000)) == 8 or die "$clock: $!";
	close($file);
	return;
}

set_clock(0);
command_ok([ 'cc', '-shared', '-fPIC', '-o', $machine, 'test/torture/machine.c', '-ldl' ],
	'a machine whose clock can be stepped');
$node->init;
{
	local $ENV{LD_PRELOAD} = $machine;
	local $ENV{TORTURE_CLOCK} = $clock;
	$node->start;
}
$node->safe_psql('postgres', 'CREATE EXTENSION idempotency');

my $before = $node->safe_psql('postgres', 'SELECT extract(epoch FROM now())::bigint');
set_clock(-7200);
my $after = $node->safe_psql('postgres', 'SELECT extract(epoch FROM now())::bigint');
cmp_ok($after, '<', $before - 3600, 'it is the clock of the server');

is($node->safe_psql('postgres', q{SELECT outcome FROM idem_claim('k', lease => '100 days')}),
	'claimed', 'a lease');

# The lease is a long one, so that a step forth leaves it alive.
for my $step (-3600, 3600)
{
	my $waiter = $node->background_psql('postgres');
	$waiter->query_until(qr/ready/, qq{
		\\echo ready
		SELECT outcome FROM idem_claim('k', lease => '1 min', wait => '10 s');
	});
	ok($node->poll_query_until('postgres', q{
		SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Extension'}),
		"$step s: a claim waits");
	my $offset = -7200 + $step;
	set_clock($offset);
	# polls for less time than the step takes
	ok($node->poll_query_until('postgres', q{
		SELECT count(*) = 0 FROM pg_stat_activity WHERE query ~ 'wait =>' AND state = 'active'
			AND pid <> pg_backend_pid()}),
		"$step s: and no longer than it wanted to");
	is($waiter->query('SELECT 1'), "in_progress\n1", "$step s: in vain");
	$waiter->quit;
	set_clock(-7200);
}

$node->stop;
done_testing();
