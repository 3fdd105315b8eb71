# The arithmetic of circuit breakers, which needs no server: a program that takes in
# src/circuit.c, has a clock of its own, and says what it finds as TAP.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;

my $program = "$PostgreSQL::Test::Utils::tmp_check/circuit";

chomp(my $include = qx{pg_config --includedir-server});
command_ok([ 'cc', '-Wall', '-Werror', '-I', $include, '-I', 'src', '-o', $program,
	'test/circuit/circuit.c' ], 'the program is built');

my $said = qx{$program};
is($?, 0, 'it is content');

my $n = 0;
foreach my $line (split /\n/, $said)
{
	if ($line =~ /^(not )?ok \d+ - (.*)/)
	{
		ok(!$1, $2);
		$n++;
	}
	elsif ($line =~ /^# (.*)/)
	{
		diag($1);
	}
}
like($said, qr/^1\.\.$n$/m, 'and has come to its end');

done_testing();
