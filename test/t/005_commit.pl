# A transaction that ends with an unfinished claim is refused (ID005), however
# it ends, and is really rolled back: no work, no record, the key free, the
# session as good as ever.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('commit');
$node->init;
$node->append_conf('postgresql.conf', <<'EOT');
max_prepared_transactions = 10
statement_timeout = '60s'
EOT
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION idempotency;
	CREATE TABLE effect (key text);
	CREATE TABLE seen (key text, outcome text);
});

# Run a script in one session that goes on after errors. Returns what it
# printed and the SQLSTATEs of its errors.
sub script
{
	my ($sql) = @_;
	my ($out, $err);

	$node->psql('postgres', "\\set VERBOSITY sqlstate\n$sql",
		stdout => \$out, stderr => \$err, on_error_stop => 0);
	my $codes = join ' ', $err =~ /ERROR:  (\w{5})/g;
	return ($out, $codes);
}

# In the same session as the failure, and in another one: the key is free, no
# work is there, and the key can be done.
sub refused
{
	my ($key, $how, $sql, $codes) = @_;
	$codes //= 'ID005';

	my ($out, $got) = script(qq{
		$sql
		\\echo after
		SELECT count(*) FROM effect WHERE key = '$key';
		SELECT count(*) FROM idem_key WHERE key = '$key';
		SELECT count(*) FROM idem_in_flight;
		BEGIN;
		SELECT outcome FROM idem_claim('$key', wait => '0');
		ROLLBACK;
	});
	is($got, $codes, "$how: refused with $codes");
	is($out =~ s/.*^after\n//smr, "0\n0\n0\nclaimed", "$how: nothing is left, the session goes on");
	is($node->safe_psql('postgres', qq{
		BEGIN;
		SELECT outcome FROM idem_claim('$key', wait => '0');
		INSERT INTO effect VALUES ('$key');
		SELECT idem_finish('$key', '"$how"');
		COMMIT;
		SELECT outcome, response FROM idem_claim('$key');
		SELECT count(*) FROM effect WHERE key = '$key';
	}), qq(claimed\n"$how"\nreplayed|"$how"\n1), "$how: another session does the work");
	return;
}

refused('commit', 'COMMIT', q{
	BEGIN;
	SELECT FROM idem_claim('commit');
	INSERT INTO effect VALUES ('commit');
	COMMIT;});
refused('prepare', 'PREPARE TRANSACTION', q{
	BEGIN;
	SELECT FROM idem_claim('prepare');
	INSERT INTO effect VALUES ('prepare');
	PREPARE TRANSACTION 'p';});
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'), 0,
	'PREPARE TRANSACTION: nothing is prepared');
refused('implicit', 'a statement by itself', q{SELECT FROM idem_claim('implicit');});
refused('do', 'DO by itself', q{
	DO $$ BEGIN
		PERFORM FROM idem_claim('do');
		INSERT INTO effect VALUES ('do');
	END $$;});
refused('one of two', 'one of two keys', q{
	BEGIN;
	SELECT FROM idem_claim('one of two');
	SELECT idem_finish('other') FROM idem_claim('other');
	INSERT INTO effect VALUES ('one of two');
	COMMIT;});
is($node->safe_psql('postgres', q{SELECT count(*) FROM idem_lookup('other')}), 0,
	'one of two keys: the finished one is undone with it');
refused('savepoint', 'a claim in a released savepoint', q{
	BEGIN;
	SAVEPOINT s;
	SELECT FROM idem_claim('savepoint');
	INSERT INTO effect VALUES ('savepoint');
	RELEASE s;
	COMMIT;});
refused('deep', 'a claim seven savepoints deep', q{
	BEGIN;
	SAVEPOINT a; SAVEPOINT b; SAVEPOINT c; SAVEPOINT d; SAVEPOINT e; SAVEPOINT f; SAVEPOINT g;
	SELECT FROM idem_claim('deep');
	COMMIT;});
refused('unfinished', 'a finish that was rolled back', q{
	BEGIN;
	SELECT FROM idem_claim('unfinished');
	INSERT INTO effect VALUES ('unfinished');
	SAVEPOINT s;
	SELECT idem_finish('unfinished');
	ROLLBACK TO s;
	COMMIT;});
refused('unreleased', 'a release that was rolled back', q{
	BEGIN;
	SELECT FROM idem_claim('unreleased');
	SAVEPOINT s;
	SELECT idem_release('unreleased');
	ROLLBACK TO s;
	COMMIT;});
refused('caught', 'a finish undone by an exception block', q{
	BEGIN;
	SELECT FROM idem_claim('caught');
	INSERT INTO effect VALUES ('caught');
	DO $$ BEGIN
		PERFORM idem_finish('caught');
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN NULL;
	END $$;
	COMMIT;});
refused('reclaimed', 'released and claimed again', q{
	BEGIN;
	SELECT FROM idem_claim('reclaimed');
	SELECT idem_release('reclaimed');
	SELECT FROM idem_claim('reclaimed');
	COMMIT;});
refused('forgotten', 'finished, forgotten and claimed again', q{
	BEGIN;
	SELECT idem_finish('forgotten') FROM idem_claim('forgotten');
	SELECT idem_forget('forgotten');
	SELECT FROM idem_claim('forgotten');
	COMMIT;});
refused('cursor', 'a claim by a cursor', q{
	BEGIN;
	DECLARE c CURSOR FOR SELECT outcome FROM idem_claim('cursor');
	FETCH ALL FROM c;
	COMMIT;});
refused('hold', 'a claim by a cursor that is to be held', q{
	BEGIN;
	DECLARE c CURSOR WITH HOLD FOR SELECT outcome FROM idem_claim('hold');
	COMMIT;});
refused('deferred', 'a claim by a deferred trigger', q{
	CREATE FUNCTION claim_late() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN PERFORM FROM idem_claim('deferred'); RETURN NULL; END $$;
	CREATE CONSTRAINT TRIGGER late AFTER INSERT ON seen DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION claim_late();
	BEGIN;
	INSERT INTO seen VALUES ('deferred', '');
	INSERT INTO effect VALUES ('deferred');
	COMMIT;
	DROP FUNCTION claim_late CASCADE;});
is($node->safe_psql('postgres', 'SELECT count(*) FROM seen'), 0,
	'a claim by a deferred trigger: what fired it is undone');

# A procedure that commits.

$node->safe_psql('postgres', q{
	CREATE PROCEDURE hasty(key text) LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM FROM idem_claim(key);
		INSERT INTO effect VALUES (key);
		COMMIT;
		INSERT INTO effect VALUES (key);
		PERFORM idem_finish(key);
	END $$;
	CREATE PROCEDURE proper(n int) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1 .. n LOOP
			IF (SELECT outcome = 'claimed' FROM idem_claim('p' || i)) THEN
				INSERT INTO effect VALUES ('p' || i);
				IF i % 3 = 0 THEN
					ROLLBACK;
					CONTINUE;
				END IF;
				PERFORM idem_finish('p' || i, to_jsonb(i));
			END IF;
			COMMIT;
		END LOOP;
	END $$;
});
refused('procedure', 'COMMIT in a procedure', q{CALL hasty('procedure');});
is($node->safe_psql('postgres', q{
	CALL proper(9);
	CALL proper(9);
	SELECT string_agg(key, ' ' ORDER BY key) FROM effect WHERE key LIKE 'p_';
}), 'p1 p2 p4 p5 p7 p8', 'a procedure that finishes before each COMMIT');

# Chained transactions. The refused one is rolled back and none follows it.

refused('chain', 'COMMIT AND CHAIN', q{
	BEGIN ISOLATION LEVEL REPEATABLE READ;
	SELECT FROM idem_claim('chain');
	INSERT INTO effect VALUES ('chain');
	COMMIT AND CHAIN;
	ROLLBACK;});
my ($out, $codes) = script(q{
	BEGIN ISOLATION LEVEL REPEATABLE READ;
	SELECT outcome, idem_finish('c1') FROM idem_claim('c1');
	COMMIT AND CHAIN;
	SHOW transaction_isolation;
	SELECT outcome FROM idem_claim('c1');
	SELECT outcome, idem_finish('c2') FROM idem_claim('c2');
	ROLLBACK AND CHAIN;
	SELECT outcome, idem_finish('c2') FROM idem_claim('c2');
	COMMIT;
	SELECT outcome FROM idem_claim('c2');});
is($codes, '', 'chained transactions that finish');
is($out, "claimed|\nrepeatable read\nreplayed\nclaimed|\nclaimed|\nreplayed",
	'commit or not each for itself');

# Several statements in one message are one transaction.

$node->command_fails_like(
	[ 'psql', '-X', '-c', q{\set VERBOSITY verbose}, '-c',
		q{SELECT FROM idem_claim('message'); INSERT INTO effect VALUES ('message')},
		'postgres' ],
	qr/ID005: key "message" is claimed but not finished/,
	'several statements in one message: refused');
$node->command_ok(
	[ 'psql', '-X', '-c',
		q{SELECT FROM idem_claim('message'); INSERT INTO effect VALUES ('message'); SELECT idem_finish('message')},
		'postgres' ],
	'several statements in one message: finished');
is($node->safe_psql('postgres', q{SELECT count(*) FROM effect WHERE key = 'message'}), 1,
	'several statements in one message: done once');

# What is no reason to refuse.

($out, $codes) = script(q{
	BEGIN;
	SELECT outcome FROM idem_claim('undone');
	ROLLBACK;
	BEGIN;
	SELECT idem_release('released') FROM idem_claim('released');
	COMMIT;
	BEGIN;
	SAVEPOINT s;
	SELECT outcome FROM idem_claim('undone');
	ROLLBACK TO s;
	COMMIT;
	SELECT outcome FROM idem_claim('message');
	SELECT outcome FROM idem_claim('message', wait => '0');
	SELECT state FROM idem_lookup('message');
	BEGIN;
	SELECT outcome FROM idem_claim('dropped');
	DROP EXTENSION idempotency;
	COMMIT;
	SELECT count(*) FROM pg_extension WHERE extname = 'idempotency';
	BEGIN;
	CREATE EXTENSION idempotency;
	SELECT outcome FROM idem_claim('message');
	DROP EXTENSION idempotency;
	CREATE EXTENSION idempotency;
	COMMIT;
	SELECT outcome, idem_finish('dropped') FROM idem_claim('dropped');});
is($codes, '', 'rolled back, released, replayed, dropped: not refused');
is($out, "claimed\n\nclaimed\nreplayed\nreplayed\nfinished\nclaimed\n0\nclaimed\nclaimed|",
	'and answered');

# An error after the claim: the transaction is over, whatever is said then.

($out, $codes) = script(q{
	BEGIN;
	SELECT outcome FROM idem_claim('error');
	SELECT 1/0;
	SELECT idem_finish('error');
	COMMIT;
	SELECT count(*) FROM idem_in_flight;
	SELECT outcome, idem_finish('error') FROM idem_claim('error', wait => '0');});
is($codes, '22012 25P02', 'an error after the claim');
is($out, "claimed\n0\nclaimed|", 'frees the key, and COMMIT says nothing more');

# PREPARE with everything finished, decided by another session.

for my $decision ('COMMIT', 'ROLLBACK')
{
	my $key = lc "$decision prepared";
	is($node->safe_psql('postgres', qq{
		BEGIN;
		SELECT outcome FROM idem_claim('$key');
		INSERT INTO effect VALUES ('$key');
		SELECT idem_finish('$key', '1');
		PREPARE TRANSACTION 'p';
		SELECT outcome FROM idem_claim('$key', wait => '0');
	}), "claimed\n1\nin_progress", "$key: prepared, and busy even for the same session");
	$node->safe_psql('postgres', "$decision PREPARED 'p'");
	is($node->safe_psql('postgres', qq{
		SELECT count(*) FROM effect WHERE key = '$key';
		BEGIN;
		SELECT outcome, response FROM idem_claim('$key', wait => '0');
		ROLLBACK;
	}), $decision eq 'COMMIT' ? "1\nreplayed|1" : "0\nclaimed|", "$key: decided");
}

# No key, no response in the log but the key that the error names.

my $log = slurp_file($node->logfile);
like($log, qr/ERROR:  key "commit" is claimed but not finished at the end of the transaction/,
	'the log names the key');
unlike($log, qr/TRAP|PANIC|terminated by signal/, 'the server did not crash');

$node->stop;
done_testing();
