# Upgrades of the extension within a database: ALTER EXTENSION UPDATE from every released
# version gives what CREATE EXTENSION gives, and the records are good for as much as
# before.
#
# test/released has the install script of each released version, as "make" assembled
# it at its tag. It is never changed again; what changes comes with a new version and
# an upgrade script in sql.
#
# The comparison must notice a statement that somebody forgot in an upgrade script. That
# is tried first, with versions that are made up here.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($share) = run_command([ 'pg_config', '--sharedir' ]);
my $scripts = "$share/extension";
-w $scripts or die "cannot write to $scripts: this is for test/run";

my @written;
END { unlink @written }

# A script of the extension, of a version or from one to another.
sub script
{
	my ($version, @text) = @_;
	my $file = "$scripts/idempotency--$version.sql";

	push @written, $file;
	open my $fh, '>', $file or die "$file: $!";
	print $fh @text;
	close $fh or die "$file: $!";
	return;
}

my $node = PostgreSQL::Test::Cluster->new('upgrade');
$node->init;
$node->append_conf('postgresql.conf', "statement_timeout = '120s'\n");
$node->start;
$node->safe_psql('postgres', 'CREATE ROLE app LOGIN');

my $current = $node->safe_psql('postgres',
	q{SELECT default_version FROM pg_available_extensions WHERE name = 'idempotency'});
my $current_script = slurp_file("$scripts/idempotency--$current.sql");

# A database with the extension in a schema of its own.
sub database
{
	my ($name, $version) = @_;

	$node->safe_psql('postgres', qq{
		CREATE DATABASE $name;
		ALTER DATABASE $name SET search_path = idem, public});
	$node->safe_psql($name, qq{
		CREATE SCHEMA idem;
		GRANT USAGE ON SCHEMA idem TO app;
		CREATE EXTENSION idempotency SCHEMA idem VERSION '$version'});
	return;
}

# What psql answers; of errors the SQLSTATE.
sub answer
{
	my ($database, $script) = @_;
	my ($out, $err) = ('', '');

	$node->psql($database, "\\set VERBOSITY sqlstate\n$script",
		stdout => \$out, stderr => \$err, on_error_stop => 0);
	return join "\n", grep { $_ ne '' } $out, $err =~ /(?:ERROR|FATAL):  (\S+)/g;
}

sub update
{
	my ($database, $version) = @_;
	return answer($database, 'ALTER EXTENSION idempotency UPDATE'
		. (defined $version ? " TO '$version'" : ''));
}

sub version_of
{
	my ($database) = @_;
	return $node->safe_psql($database, q{SELECT extversion FROM pg_extension WHERE extname = 'idempotency'});
}

#
# Catalog
#

# All that the extension has made, in words, without OIDs; a line for each fact.
my $catalog = q{
	WITH extension AS (
		SELECT * FROM pg_extension WHERE extname = 'idempotency'
	), member AS (
		SELECT classid, objid
		  FROM pg_depend JOIN extension ON refobjid = extension.oid
		 WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
	), composite AS (
		SELECT t.* FROM pg_type AS t JOIN member ON objid = t.oid AND classid = 'pg_type'::regclass
		 WHERE typtype = 'c'
	), relation AS (
		SELECT * FROM pg_class
		 WHERE oid IN (SELECT objid FROM member WHERE classid = 'pg_class'::regclass
			UNION ALL SELECT typrelid FROM composite)
	), function AS (
		SELECT p.* FROM pg_proc AS p JOIN member ON objid = p.oid AND classid = 'pg_proc'::regclass
	), granted (name, acl) AS (
		SELECT oid::regprocedure::text, COALESCE(proacl, acldefault('f', proowner)) FROM function
		UNION ALL
		SELECT oid::regclass::text, COALESCE(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))
		  FROM relation
		UNION ALL
		SELECT oid::regtype::text, COALESCE(typacl, acldefault('T', typowner)) FROM composite
		UNION ALL
		SELECT attrelid::regclass || '.' || attname, attacl FROM pg_attribute JOIN relation ON attrelid = relation.oid
		UNION ALL
		-- what pg_dump takes for granted
		SELECT 'initially ' || pg_describe_object(i.classoid, i.objoid, i.objsubid), initprivs
		  FROM pg_init_privs AS i JOIN member ON i.classoid = classid AND i.objoid = objid
	), fact (fact) AS (
		SELECT format('extension: relocatable %s, schema %s', extrelocatable, extnamespace::regnamespace)
		  FROM extension
		UNION ALL
		SELECT format('dumped: %s %s', config::regclass, condition)
		  FROM extension, unnest(extconfig, extcondition) AS c (config, condition)
		UNION ALL
		SELECT format('member: %s: %s', pg_describe_object(classid, objid, 0),
				obj_description(objid, classid::regclass::name))
		  FROM member
		UNION ALL
		SELECT format('function: %s owner %s: %s', oid::regprocedure, proowner::regrole, pg_get_functiondef(oid))
		  FROM function
		UNION ALL
		SELECT format('relation: %s kind %s persistence %s owner %s access method %s options %s toast %s security %s %s replica %s',
				r.oid::regclass, r.relkind, r.relpersistence, r.relowner::regrole, amname, r.reloptions, t.reloptions,
				r.relrowsecurity, r.relforcerowsecurity, r.relreplident)
		  FROM relation AS r LEFT JOIN pg_class AS t ON t.oid = r.reltoastrelid
			   LEFT JOIN pg_am AS a ON a.oid = r.relam
		UNION ALL
		-- with its number: the library looks at columns by number
		SELECT format('column: %s.%s number %s type %s collation %s not null %s default %s identity %s generated %s storage %s compression %s statistics %s options %s: %s',
				attrelid::regclass, attname, attnum, format_type(atttypid, atttypmod),
				NULLIF(attcollation, 0)::regcollation, attnotnull, pg_get_expr(adbin, adrelid), attidentity, attgenerated,
				attstorage, attcompression, NULLIF(attstattarget, -1),
				-- some minor releases keep the version of a column here, which is never the same twice
				ARRAY(SELECT o FROM unnest(attoptions) AS o WHERE o !~ '^pg_attver=' ORDER BY o), col_description(attrelid, attnum))
		  FROM pg_attribute JOIN relation ON attrelid = relation.oid
			   LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
		 WHERE attnum > 0 AND NOT attisdropped
		UNION ALL
		SELECT format('constraint: %s %s %s validated %s: %s', conrelid::regclass, conname,
				pg_get_constraintdef(c.oid), convalidated, obj_description(c.oid, 'pg_constraint'))
		  FROM pg_constraint AS c JOIN relation ON conrelid = relation.oid
		UNION ALL
		SELECT format('index: %s valid %s replica %s clustered %s: %s', pg_get_indexdef(indexrelid), indisvalid,
				indisreplident, indisclustered, obj_description(indexrelid, 'pg_class'))
		  FROM pg_index JOIN relation ON indrelid = relation.oid
		UNION ALL
		SELECT format('statistics: %s', pg_get_statisticsobjdef(s.oid))
		  FROM pg_statistic_ext AS s JOIN relation ON stxrelid = relation.oid
		UNION ALL
		SELECT format('view: %s: %s', oid::regclass, pg_get_viewdef(oid)) FROM relation WHERE relkind IN ('v', 'm')
		UNION ALL
		SELECT format('rule: %s', pg_get_ruledef(w.oid)) FROM pg_rewrite AS w JOIN relation ON ev_class = relation.oid
		UNION ALL
		SELECT format('trigger: %s', pg_get_triggerdef(t.oid)) FROM pg_trigger AS t JOIN relation ON tgrelid = relation.oid
		UNION ALL
		SELECT format('policy: %s %s', polrelid::regclass, polname) FROM pg_policy JOIN relation ON polrelid = relation.oid
		UNION ALL
		SELECT format('sequence: %s type %s start %s by %s from %s to %s cache %s cycle %s owned by %s', seqrelid::regclass,
				seqtypid::regtype, seqstart, seqincrement, seqmin, seqmax, seqcache, seqcycle,
				pg_describe_object(refclassid, refobjid, refobjsubid))
		  FROM pg_sequence JOIN relation ON seqrelid = relation.oid
			   LEFT JOIN pg_depend ON classid = 'pg_class'::regclass AND objid = seqrelid AND deptype IN ('a', 'i')
		UNION ALL
		SELECT format('granted: %s to %s: %s, grant option %s', name,
				CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, privilege_type, is_grantable)
		  FROM granted, aclexplode(acl)
	)
	SELECT replace(fact, chr(10), ' ') FROM fact ORDER BY fact COLLATE "C"};

# What is in one list of lines and not in the other.
sub difference
{
	my ($got, $expected) = @_;
	my (%got, %expected);

	$got{$_} = 1 for split /\n/, $got;
	$expected{$_} = 1 for split /\n/, $expected;
	return join "\n", (map { "missing: $_" } grep { !$got{$_} } sort keys %expected),
	  (map { "too much: $_" } grep { !$expected{$_} } sort keys %got);
}

sub catalog
{
	my ($database) = @_;
	my $text = $node->safe_psql($database, $catalog);

	# of what kind nothing more is told than that it is there; an array has nothing of
	# its own
	my $strange = $node->safe_psql($database, q{
		SELECT DISTINCT classid::regclass FROM pg_depend
		 WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
		   AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency')
		   AND classid NOT IN ('pg_class'::regclass, 'pg_proc'::regclass)
		   AND NOT (classid = 'pg_type'::regclass AND (SELECT typtype = 'c' OR typelem <> 0 FROM pg_type WHERE oid = objid))});
	die "the comparison knows nothing of $strange" if $strange ne '';
	return $text;
}

#
# Records
#

my %token;

# Of each kind, in this database; remembers tokens.
sub make_records
{
	my ($database) = @_;

	is(answer($database, <<'EOT'), '', "$database: records of each kind");
\o /dev/null
SET SESSION AUTHORIZATION app;
BEGIN;
SELECT FROM idem_claim('done', request => '{"amount": 10.0}', scope => 's');
SELECT idem_finish('done', '{"by": "app"}', 's');
COMMIT;
SELECT idem_finish('big', (SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 5000) AS i)) FROM idem_claim('big');
SELECT idem_finish('expired') FROM idem_claim('expired', ttl => '1 ms');
SELECT idem_fail('retry', '"busy"', retry_in => '1 day', token => token) FROM idem_claim('retry', lease => '1 h');
SELECT idem_fail('final', '"declined"', final => true, token => token) FROM idem_claim('final', lease => '1 h');
SELECT FROM idem_claim('live', lease => '1 day', holder => 'me');
SELECT FROM idem_claim('lapsed', lease => '1 h');
SELECT FROM idem_claim('lapsed, fail', lease => '1 h', takeover => 'fail');
SELECT FROM idem_claim('held', lease => '1 h', takeover => 'hold');
SELECT idem_step_finish('flow', 'one', '{"n": 1}', request => '[1.0]', token => token)
  FROM idem_claim('flow', lease => '1 day');
SELECT idem_configure_queue('mail', max_attempts => 1, backoff_base => '2 s', dead_letter_ttl => '1 day');
SELECT idem_enqueue('mail', '"dies"', key => 'm');
SELECT idem_nack(id, token, '{"smtp": 451}') FROM idem_dequeue('mail');
SELECT idem_enqueue('work', '"first"', message_group => 'g', headers => '{"h": 1}');
SELECT idem_enqueue('work', '"second"', message_group => 'g', priority => 3::int2);
SELECT FROM idem_dequeue('work', lease => '1 day');
SELECT idem_receive('hook', 'evt_1', '"event"');
RESET SESSION AUTHORIZATION;
SELECT idem_breaker_configure('payments', window_length => '2 min');
UPDATE idem_key SET lease_until = '2000-01-01' WHERE key ~ '^(lapsed|held)';
EOT
	for my $key ('live', 'flow', 'lapsed')
	{
		$token{$key} = $node->safe_psql($database, "SELECT token FROM idem_key WHERE key = '$key'");
	}
	$token{message} = $node->safe_psql($database, q{SELECT id || ', ' || token FROM idem_message WHERE attempt > 0});
	return;
}

# They are answered as if nothing had happened.
sub check_records
{
	my ($database) = @_;

	is(answer($database, <<"EOT"), <<'EOT' =~ s/\n\z//r, "$database: the records are good");
SET SESSION AUTHORIZATION app;
SELECT outcome, response FROM idem_claim('done', request => '{"amount": 10}', scope => 's');
SELECT outcome, response FROM idem_claim('done', request => '{"amount": 11}', scope => 's');
SELECT outcome, jsonb_array_length(response) FROM idem_claim('big');
SELECT outcome, idem_finish('expired', '1') FROM idem_claim('expired');
SELECT outcome, response, attempt, retry_after > '0' FROM idem_claim('retry');
SELECT outcome, response FROM idem_claim('final');
SELECT outcome, retry_after > '0' FROM idem_claim('live');
SELECT outcome FROM idem_claim('lapsed, fail');
SELECT outcome FROM idem_claim('held');
SELECT outcome, attempt FROM idem_claim('lapsed', lease => '1 h');
SELECT idem_resolve('held', '"settled"');
SELECT outcome, response FROM idem_claim('held');
SELECT idem_finish('live', '"finished"', token => $token{live});
SELECT done, result FROM idem_step('flow', 'one', request => '[1]', token => $token{flow});
SELECT done, result FROM idem_step('flow', 'two', token => $token{flow});
SELECT queue, payload, attempt, last_error FROM idem_dead_letters;
SELECT idem_redrive('mail');
SELECT payload, attempt, key FROM idem_dequeue('mail');
SELECT payload FROM idem_dequeue('work');
SELECT idem_ack($token{message});
SELECT payload, message_group FROM idem_dequeue('work');
SELECT duplicate FROM idem_receive('hook', 'evt_1', '"event"');
RESET SESSION AUTHORIZATION;
SELECT queue, max_attempts, backoff_base, dead_letter_ttl FROM idem_queue;
SELECT window_length FROM idem_breaker WHERE name = 'payments';
SET SESSION AUTHORIZATION app;
SELECT idem_finish('lapsed', token => $token{lapsed});
EOT
replayed|{"by": "app"}
mismatch|
replayed|5000
claimed|1
retry_later|"busy"|1|t
failed|"declined"
in_progress|t
failed
held
claimed|2

replayed|"settled"
"finished"
t|{"n": 1}
f|
mail|"dies"|1|{"smtp": 451}
1
"dies"|1|m

"second"|g
t
mail|1|00:00:02|1 day
00:02:00
ID003
EOT
	return;
}

#
# Versions that are made up: "one" is the current one with more in it, "two" comes
# after it.
#

my $foundation = q{
CREATE TABLE @extschema@.idem_synthetic (a int, b text COLLATE "C");
CREATE VIEW @extschema@.idem_synthetics AS SELECT a FROM @extschema@.idem_synthetic;
CREATE FUNCTION @extschema@.idem_synthetic(a int) RETURNS int LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION @extschema@.idem_antique() RETURNS int LANGUAGE sql AS 'SELECT 1';
};

# What it is about, what the comparison must say if it is forgotten, the statement.
my @change = (
	[ 'a function', qr/missing: member: function idem_synthetic\(/,
		q{CREATE FUNCTION @extschema@.idem_synthetic(a int, b int) RETURNS int LANGUAGE sql AS 'SELECT a + b'} ],
	[ 'a function that is no more', qr/too much: member: function idem_antique/,
		q{DROP FUNCTION @extschema@.idem_antique()} ],
	[ 'the name of an argument, its default', qr/missing: function: idem_derive.*extra/,
		q{CREATE FUNCTION @extschema@.idem_derive(extra int DEFAULT 7) RETURNS int LANGUAGE sql AS 'SELECT extra'} ],
	[ 'volatility', qr/missing: function: idem_queue_hash.*STABLE/,
		q{ALTER FUNCTION @extschema@.idem_queue_hash(text) STABLE} ],
	[ 'a privilege that is taken', qr/too much: granted: idem_synthetic\(integer\) to PUBLIC/,
		q{REVOKE EXECUTE ON FUNCTION @extschema@.idem_synthetic(int) FROM PUBLIC} ],
	[ 'a privilege that is given', qr/missing: granted: idem_synthetic to pg_monitor/,
		q{GRANT SELECT ON @extschema@.idem_synthetic TO pg_monitor} ],
	[ 'the comment of a function', qr/missing: member: function idem_synthetic\(integer\): says/,
		q{COMMENT ON FUNCTION @extschema@.idem_synthetic(int) IS 'says something'} ],
	[ 'the comment of a column', qr/missing: column: idem_synthetic\.a .*: says/,
		q{COMMENT ON COLUMN @extschema@.idem_synthetic.a IS 'says something'} ],
	[ 'a column', qr/missing: column: idem_synthetic\.c number 3 /,
		q{ALTER TABLE @extschema@.idem_synthetic ADD COLUMN c text COLLATE "C"} ],
	[ 'a default', qr/missing: column: idem_synthetic\.b .* default 'x'/,
		q{ALTER TABLE @extschema@.idem_synthetic ALTER COLUMN b SET DEFAULT 'x'} ],
	[ 'NOT NULL', qr/missing: column: idem_synthetic\.a .* not null t/,
		q{ALTER TABLE @extschema@.idem_synthetic ALTER COLUMN a SET NOT NULL} ],
	[ 'a constraint', qr/missing: constraint: idem_synthetic .*CHECK/,
		q{ALTER TABLE @extschema@.idem_synthetic ADD CHECK (a > 0)} ],
	[ 'an index', qr/missing: index: .*idem_synthetic_a/,
		q{CREATE INDEX idem_synthetic_a ON @extschema@.idem_synthetic (a)} ],
	[ 'a storage parameter', qr/missing: relation: idem_key .*fillfactor=90/,
		q{ALTER TABLE @extschema@.idem_key SET (fillfactor = 90)} ],
	[ 'one of a TOAST table', qr/missing: relation: idem_step .*vacuum_truncate/,
		q{ALTER TABLE @extschema@.idem_step SET (toast.vacuum_truncate = false)} ],
	[ 'the definition of a view', qr/missing: view: idem_synthetics: .*idem_synthetic\.b|missing: view: idem_synthetics: .* b\b/,
		q{CREATE OR REPLACE VIEW @extschema@.idem_synthetics AS SELECT a, b FROM @extschema@.idem_synthetic} ],
	[ 'a sequence', qr/missing: sequence: idem_message_id .* cache 7/,
		q{ALTER SEQUENCE @extschema@.idem_message_id CACHE 7} ],
	[ 'what is dumped', qr/missing: dumped: idem_synthetic/,
		q{SELECT pg_catalog.pg_extension_config_dump('@extschema@.idem_synthetic', 'WHERE a > 1')} ]);

script('one', $current_script, $foundation);
script("$current--one", $foundation);
script('two', $current_script, $foundation, map { "$$_[2];\n" } @change);
script('one--two', map { "$$_[2];\n" } @change);

database('fresh_one', 'one');
database('fresh_two', 'two');
my $fresh_two = catalog('fresh_two');
isnt(difference(catalog('fresh_one'), $fresh_two), '', 'versions differ');

for my $change (@change)
{
	my ($what, $notice) = @$change;

	script('one--two', map { "$$_[2];\n" } grep { $_ != $change } @change);
	$node->safe_psql('postgres', q{
		CREATE DATABASE forgotten TEMPLATE fresh_one;
		ALTER DATABASE forgotten SET search_path = idem, public});
	is(update('forgotten', 'two'), '', "an upgrade script that lacks $what");
	like(difference(catalog('forgotten'), $fresh_two), $notice, '... is found out');
	$node->safe_psql('postgres', 'DROP DATABASE forgotten');
}

# The whole one, in two steps from the current version, with records, while a session
# that has used the extension before stays.
script('one--two', map { "$$_[2];\n" } @change);
database('stepwise', $current);
make_records('stepwise');
my $session = $node->background_psql('stepwise');
$session->query_safe('SET SESSION AUTHORIZATION app');
is($session->query_safe(q{SELECT outcome FROM idem_claim('final')}), 'failed', 'a session');
is(update('stepwise', 'two'), '', "stepwise: from $current to one to two");
is(version_of('stepwise'), 'two', 'stepwise: there it is');
is(difference(catalog('stepwise'), $fresh_two), '', 'stepwise: the same as a fresh one');
is($session->query_safe(q{SELECT outcome FROM idem_claim('final')}), 'failed', 'the session goes on');
$session->quit;
check_records('stepwise');

#
# A library that is not of the version of the SQL objects: it works, or it is refused
# and nothing is lost.
#

# A function that this library does not have.
script("$current--newer", q{
	CREATE FUNCTION @extschema@.idem_future() RETURNS int AS 'MODULE_PATHNAME', 'idem_future' LANGUAGE C});
database('newer_function', $current);
make_records('newer_function');
is(update('newer_function', 'newer'), '42883', 'objects newer than the library: refused');
is(version_of('newer_function'), $current, 'and all is as before');
check_records('newer_function');

# A column that this library does not know.
script("$current--wider", q{ALTER TABLE @extschema@.idem_key ADD COLUMN future int});
script("wider--$current", q{ALTER TABLE @extschema@.idem_key DROP COLUMN future});
database('newer_column', $current);
make_records('newer_column');
is(update('newer_column', 'wider'), '', 'a column more than the library knows');
is(answer('newer_column', q{
	SELECT outcome FROM idem_claim('done', scope => 's');
	SELECT outcome FROM idem_claim('new', lease => '1 h');
	SELECT count(*) FROM idem_key WHERE key = 'new'}), "0\n55000\n55000", 'every call is refused');
is(update('newer_column'), '', 'until one goes back');
check_records('newer_column');

# A table that this library wants, and old objects do not have.
script("$current--older", q{ALTER TABLE @extschema@.idem_breaker RENAME TO idem_later});
script("older--$current", q{ALTER TABLE @extschema@.idem_later RENAME TO idem_breaker});
database('older_table', $current);
make_records('older_table');
is(update('older_table', 'older'), '', 'a table less than the library wants');
is(answer('older_table', q{SELECT outcome FROM idem_claim('done', scope => 's')}), '42P01', 'refused');
is(update('older_table'), '', 'until the objects are updated, too');
check_records('older_table');
unlink @written;

#
# The released versions
#

is($current_script, slurp_file("sql/idempotency--$current.sql"), 'what is installed is what was built');
database('fresh', $current);
my $fresh = catalog('fresh');

for my $file (sort glob 'test/released/idempotency--*.sql')
{
	my ($version) = $file =~ /idempotency--(.*)\.sql$/ or die $file;
	my $database = 'from_' . $version =~ s/\W/_/gr;

	if ($version eq $current)
	{
		is($current_script, slurp_file($file),
			"$version is released: its script is what it was (a change needs a new version)");
		next;
	}
	script($version, slurp_file($file));
	database($database, $version);
	make_records($database);
	is(update($database), '', "from $version to $current");
	is(version_of($database), $current, "$version: there it is");
	is(difference(catalog($database), $fresh), '', "$version: the same as a fresh $current");
	check_records($database);
}

$node->stop;

done_testing();
