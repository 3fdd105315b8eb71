# Keys in encodings of which not every text has a form in UTF-8, or one of its own.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('encoding');
$node->init;
$node->start;

my %keys = (
	UTF8 => [ 'plain', '\xc3\xa4', '\xe4\xb8\x96' ],
	LATIN1 => [ 'plain', '\xe4', '\xe5' ],
	WIN1252 => [ 'plain', '\x81', '\x8d', '\xe4' ],
	SQL_ASCII => [ 'plain', '\xe4', '\xe5', '\xff' ],
	# the same character of Unicode, twice
	EUC_TW => [ 'plain', '\xa4\xa1', '\x8e\xa1\xa4\xa1' ],
	# not to be converted to UTF-8 at all
	MULE_INTERNAL => [ 'plain', '\x81\xe4', '\x82\xe4' ]);

for my $encoding (sort keys %keys)
{
	my $database = lc $encoding;
	my @key = map { "E'$_'" } @{ $keys{$encoding} };

	$node->safe_psql('postgres',
		"CREATE DATABASE $database TEMPLATE template0 ENCODING '$encoding' LOCALE 'C'");
	$node->safe_psql($database, "SET client_encoding = '$encoding'; CREATE EXTENSION idempotency");
	for my $scope (q{''}, $key[-1])
	{
		for my $n (0 .. $#key)
		{
			is($node->safe_psql($database, qq{
				SET client_encoding = '$encoding';
				SELECT outcome, idem_finish($key[$n], '$n', $scope) FROM idem_claim($key[$n], scope => $scope);
				SELECT outcome, response FROM idem_claim($key[$n], scope => $scope)}),
				"claimed|$n\nreplayed|$n", "$encoding: key $key[$n] in scope $scope");
		}
	}
	is($node->safe_psql($database, 'SELECT count(*), count(DISTINCT id) FROM idem_key'),
		join('|', (2 * @key) x 2), "$encoding: each under an ID of its own");
}

# A dump for a database of another encoding, as doc/reference.md has it.

my $dump = $node->basedir . '/latin1.sql';
$node->command_ok([ 'pg_dump', '-d', $node->connstr('latin1'), '-f', $dump ], 'dumped');
$node->safe_psql('postgres', q{CREATE DATABASE moved TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'});
$node->safe_psql('moved', q{CREATE EXTENSION idempotency; ALTER TABLE idem_key DROP CONSTRAINT idem_key_check});
$node->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('moved'), '-f', $dump ],
	'restored');
$node->safe_psql('moved', q{
	UPDATE idem_key SET id = idem_key_id(coalesce(key, id::text), scope);
	ALTER TABLE idem_key ADD CHECK (id = idem_key_id(coalesce(key, id::text), scope))});
is($node->safe_psql('moved', q{
	SELECT outcome, response FROM idem_claim('plain');
	SELECT outcome, response FROM idem_claim(U&'\00e4');
	SELECT outcome, response FROM idem_claim(U&'\00e5', scope => U&'\00e5')}),
	"replayed|0\nreplayed|1\nreplayed|2", 'and replayed');

$node->stop;
done_testing();
