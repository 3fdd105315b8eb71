# Questions to a server that may be starting again.
#
# The functions of PostgreSQL::Test::Cluster write a query to psql, and die of a
# broken pipe if psql could not connect and was gone before it had read it.

package Restart;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Utils;
use Time::HiRes qw(time sleep);

our @EXPORT = qw(ask wait_for);

# What the server answers, or undef if it does not.
sub ask
{
	my ($node, $query) = @_;
	my ($answer, $error) = run_command(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-c', $query ]);
	return $error eq '' ? $answer : undef;
}

# Waits until the query answers true, as poll_query_until() does.
sub wait_for
{
	my ($node, $query) = @_;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;

	while (time < $deadline)
	{
		return 1 if (ask($node, $query) // '') eq 't';
		sleep 0.05;
	}
	return 0;
}

1;
