# A database that comes back as it was at a point in the midst of work: from a base
# backup and archived WAL, recovered to a restore point, a place in the WAL, or a
# transaction; and from a dump. Backup and dump are taken under load. What was
# committed after the point is lost, effect and record together, and is done anew,
# once, when the clients come again.
#
# IDEM_STORM_SECONDS says how long the clients work before that.

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Storable qw(dclone);
use Test::More;

use Clients;

my $seconds = $ENV{IDEM_STORM_SECONDS} || 3;
my $clients = Clients->new(6);

my $node = PostgreSQL::Test::Cluster->new('lost');
$node->init(has_archiving => 1, allows_streaming => 1);
$node->append_conf('postgresql.conf', Clients::conf());
$node->start;
Clients::setup($node);

# Run a command while the clients work.
sub under_load
{
	my (@command) = @_;
	my $output = '';
	my $run = IPC::Run::start([@command], '<', \'', '>&', \$output);

	$clients->load($node, 0, sub { $run->pump_nb; return !$run->pumpable });
	ok($run->finish, "$command[0] under load") or diag $output;
	return;
}

$clients->load($node, $seconds);
under_load('pg_basebackup', '-D', $node->backup_dir . '/base', '-h', $node->host, '-p', $node->port,
	'--checkpoint', 'fast', '--no-sync');
$clients->load($node, 0);

# The points, and how much the clients had been told by then.
my %told = (dump => $clients->told);
my $dump = PostgreSQL::Test::Utils::tempdir . '/dump';
under_load('pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr('postgres'));

$told{name} = $clients->told;
$node->safe_psql('postgres', q{SELECT pg_create_restore_point('midst')});
$clients->load($node, 0);
$told{lsn} = $told{xid} = $clients->told;
my $lsn = $node->lsn('insert');
$clients->load($node, 0);
my ($xid, $run) = split /\|/, $node->safe_psql('postgres', 'SELECT xmin, run FROM effect ORDER BY age(xmin) LIMIT 1');

# They go on, past the end of the WAL that is left.
my $segment = $node->safe_psql('postgres', 'SELECT pg_walfile_name(pg_switch_wal())');
$clients->load($node, 0, sub {
	return $node->safe_psql('postgres', "SELECT last_archived_wal >= '$segment' FROM pg_stat_archiver") eq 't'});
$node->stop('immediate');
$clients->lose;

sub recovered
{
	my ($name, %target) = @_;
	my $new = PostgreSQL::Test::Cluster->new($name);

	$new->init_from_backup($node, 'base', has_restoring => 1, standby => 0);
	$new->append_conf('postgresql.conf', "archive_mode = off\nrecovery_target_action = promote");
	$new->append_conf('postgresql.conf', "$_ = '$target{$_}'") for sort keys %target;
	$new->start;
	ok($new->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()'), "$name: recovered");
	return $new;
}

# Each server that comes back is a world of its own, to which the clients come as
# they were when the old one was lost.
sub again
{
	my ($new, $told, $prepared) = @_;
	my $again = dclone($clients);

	cmp_ok($again->recover($new, $told, $prepared), '>', 0, $new->name . ': some commits are lost');
	$again->retry($new);
	$again->check($new);
	$new->stop;
	return;
}

again(recovered('restore_point', recovery_target_name => 'midst'), $told{name});
again(recovered('lsn', recovery_target_lsn => $lsn), $told{lsn});

# A transaction is the last one, or the first one that is not there.
for my $inclusive (0, 1)
{
	my $new = recovered("xid_$inclusive", recovery_target_xid => $xid, recovery_target_inclusive => $inclusive);
	for my $telling ('effect', 'record')
	{
		is($new->safe_psql('postgres', "SELECT count(*) FROM $telling WHERE run = '$run'"), $inclusive,
			$new->name . ": $telling");
	}
	again($new, $told{xid});
}

# The server that takes the dump has its roles by other OIDs.
my $restored = PostgreSQL::Test::Cluster->new('restored');
$restored->init;
$restored->append_conf('postgresql.conf', Clients::conf());
$restored->start;
$restored->safe_psql('postgres', 'CREATE ROLE filler; CREATE ROLE app LOGIN');
$restored->command_ok([ 'pg_restore', '--exit-on-error', '-d', $restored->connstr('postgres'), $dump ],
	'pg_restore');
again($restored, $told{dump}, 0);

done_testing();
