# The primary goes down in the midst of work and its standby is promoted. The
# clients come again with the same keys: with synchronous replication nothing that
# they were told is lost, and nothing is done twice. With asynchronous replication
# the last commits may be lost, but each of them as a whole, effect and record, and
# is done anew, once.
#
# IDEM_STORM_SECONDS says how long the clients work before that.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Clients;

my $seconds = $ENV{IDEM_STORM_SECONDS} || 3;

sub start_pair
{
	my ($how) = @_;
	my $primary = PostgreSQL::Test::Cluster->new("${how}_primary");
	my $standby = PostgreSQL::Test::Cluster->new("${how}_standby");

	$primary->init(allows_streaming => 1);
	$primary->append_conf('postgresql.conf', Clients::conf());
	$primary->start;
	Clients::setup($primary);
	$primary->backup('base');
	$standby->init_from_backup($primary, 'base', has_streaming => 1);
	$standby->start;
	return ($primary, $standby);
}

# Synchronous: half of the clients wait until the standby has their commits on disk,
# half until it shows them.

my ($primary, $standby) = start_pair('sync');
$primary->append_conf('postgresql.conf', "synchronous_standby_names = 'sync_standby'");
$primary->reload;
ok($primary->poll_query_until('postgres', q{
	SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'}),
	'replication is synchronous');

my $clients = Clients->new(6, 'SET synchronous_commit = on;', 'SET synchronous_commit = remote_apply;');
$clients->load($primary, $seconds);
my @applied = map { join '|', @$_[ 1 .. 3 ] } grep { $$_[0] % 2 == 1 } @{ $clients->{journal} };
cmp_ok(scalar(@applied), '>', 0, 'some commits are applied on the standby');
for my $telling ('effect', 'record')
{
	my %there = map { $_ => 1 } split /\n/, $standby->safe_psql('postgres', "TABLE $telling");
	is(scalar(grep { !$there{$_} } @applied), 0, "they show there as $telling");
}
$clients->load($primary, 0);
$primary->stop('immediate');
$clients->lose;
$standby->promote;

is($clients->recover($standby, $clients->told), 0, 'synchronous: nothing is lost');
$clients->retry($standby);
$clients->check($standby);
$standby->stop;

# Asynchronous: the standby is cut off, and the primary goes on for a while.

($primary, $standby) = start_pair('async');
$clients = Clients->new(6);
$clients->load($primary, $seconds);
my $safe = $clients->told;
$primary->wait_for_catchup($standby, 'flush', $primary->lsn('insert'));
$standby->stop;
$clients->load($primary, 0);
$primary->stop('immediate');
$clients->lose;
$standby->start;
$standby->promote;

cmp_ok($clients->recover($standby, $safe), '>', 0, 'asynchronous: some commits are lost');
$clients->retry($standby);
$clients->check($standby);
$standby->stop;

done_testing();
