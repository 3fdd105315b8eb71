# Clients that work under keys in every way there is, lose their server, and come
# again with the same requests, wherever the database is by then, until each
# request has its answer.
#
# The work of a key is a row in "effect". Nothing but the keys keeps it from being
# done twice, and "run" tells two times apart. So there are three tellings of one
# story, all in rows of (key, part, run):
#
#	effect		what was done
#	record		what the extension knows to be done
#	journal		what clients were told; they keep it themselves, outside of any
#				database, and it is brought in when the server is lost
#
# Effect and record are the same at any time, on whatever comes out of a promotion,
# a recovery or a dump; what the journal tells and effect has not is lost.

package Clients;

use strict;
use warnings;

use IPC::Run;
use List::Util qw(min);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

my $batch_size = 16;			# more keys than a transaction may lock, see conf()
my $requests_at_once = 30;		# between two connections of a client
my $recent = 200;				# requests that may come from somebody else, too
my $max_prepared = 20;			# transactions that are left behind prepared

# One request of each kind, as psql scripts. A client that dies does so at one of
# the marked places, if it does not when the server goes.
my $die = "-- here the client may die\n";

sub claim
{
	my ($options) = @_;
	return <<"EOT";
SELECT outcome, outcome = 'claimed' AS claimed, coalesce(token::text, 'NULL') AS token,
	   jsonb_build_object(:'key', response) AS answers
  FROM idem_claim(:'key', request => to_jsonb(:'key'::text)$options) \\gset
EOT
}

my $work = <<'EOT';
INSERT INTO effect (key) VALUES (:'key') RETURNING jsonb_build_object(part, run) AS response \gset
SELECT jsonb_build_object(:'key', idem_finish(:'key', :'response', token => :token)) AS answers \gset
EOT

my $tell = "\\echo :outcome :answers\n";

sub lease
{
	my ($takeover) = @_;
	return claim(", lease => '1 h', takeover => '$takeover', wait => '0'") . <<"EOT" . $tell;
\\if :claimed
\\echo token :key :token
${die}BEGIN;
SELECT FROM idem_guard(:'key', token => :token) \\g /dev/null
${work}COMMIT;
\\endif
EOT
}

sub step
{
	my ($part) = @_;
	return <<"EOT";
SELECT done, jsonb_build_object(:'key', result) AS answers
  FROM idem_step(:'key', '$part', request => '"$part"', token => :token) \\gset
\\if :done
\\else
BEGIN;
INSERT INTO effect (key, part) VALUES (:'key', '$part') RETURNING jsonb_build_object(part, run) AS result \\gset
SELECT jsonb_build_object(:'key', idem_step_finish(:'key', '$part', :'result',
	token => :token, request => '"$part"')) AS answers \\gset
COMMIT;
\\endif
\\echo step :answers
EOT
}

my %script = (
	plain => "BEGIN;\n" . claim('') . "\\if :claimed\n$work\\endif\nCOMMIT;\n$tell",
	rerun => lease('rerun'),
	fail => lease('fail'),
	hold => lease('hold'),
	flow => claim(", lease => '1 h', wait => '0'")
	  . "\\if :claimed\n\\echo token :key :token\n"
	  . step('first') . $die . step('second') . <<'EOT' . "\\endif\n$tell",
SELECT jsonb_build_object(:'key', idem_finish(:'key', jsonb_object_agg(part, run), token => :token)) AS answers
  FROM idem_steps(:'key'), jsonb_each(result) AS r(part, run) \gset
EOT
	prepared => "BEGIN;\n" . claim(", wait => '0'") . <<"EOT" . $tell,
\\if :claimed
${work}PREPARE TRANSACTION :'key';
\\else
COMMIT;
\\endif
\\if :claimed
$die\\echo prepared :key
${die}COMMIT PREPARED :'key';
\\endif
EOT
	batch => <<'EOT');
BEGIN;
SELECT array_agg(key) FILTER (WHERE outcome = 'claimed') AS mine,
	   coalesce(jsonb_object_agg(key, response) FILTER (WHERE outcome = 'replayed'), '{}') AS seen,
	   bool_or(outcome = 'claimed') AS claimed
  FROM idem_claim_many(:'keys') \gset
\set done {}
\if :claimed
WITH work AS (
	INSERT INTO effect (key) SELECT unnest(:'mine'::text[]) RETURNING key, jsonb_build_object(part, run) AS response)
SELECT jsonb_object_agg(f.key, f.response) AS done
  FROM (SELECT array_agg(key) AS keys, array_agg(response) AS responses FROM work) AS w,
	   idem_finish_many(w.keys, w.responses) AS f \gset
\endif
COMMIT;
\echo claimed :done
\echo replayed :seen
EOT
my @kinds = sort keys %script;
my @mortal = grep { $script{$_} =~ /\Q$die\E/ } @kinds;

# Fewer locks than a batch has keys: the rest of them is written ahead.
sub conf
{
	return <<"EOT";
max_connections = 30
max_prepared_transactions = 50
max_locks_per_transaction = 10
statement_timeout = '120s'
EOT
}

# What has to be there before the first client comes. The functions with SECURITY
# DEFINER are the clients' own.
sub setup
{
	my ($node) = @_;
	$node->safe_psql('postgres', q{
		CREATE ROLE app LOGIN;
		CREATE EXTENSION idempotency;
		CREATE TABLE effect (key text, part text DEFAULT 'work', run uuid DEFAULT gen_random_uuid());
		GRANT ALL ON effect TO app;
		CREATE TABLE journal (key text, part text, run uuid);
		CREATE TABLE asked (key text);
		CREATE TABLE token (key text, token bigint);

		CREATE VIEW record AS
			SELECT key, part, run::uuid
			  FROM idem_key, jsonb_each_text(response) AS r(part, run) WHERE state = 'f'
			UNION
			SELECT key, part, run::uuid
			  FROM idem_key JOIN idem_step USING (generation), jsonb_each_text(result) AS r(part, run);
		CREATE VIEW contradiction AS
			SELECT 'no record of' AS what, * FROM (TABLE effect EXCEPT ALL TABLE record) AS x
			UNION ALL
			SELECT 'no effect of', * FROM (TABLE record EXCEPT ALL TABLE effect) AS x;

		CREATE FUNCTION ask(key text) RETURNS text LANGUAGE sql VOLATILE SECURITY DEFINER AS
			$$ SELECT outcome FROM idem_claim(key, wait => '0', lease => '1 h') $$;

		-- One who comes late with his token, to do the work under it.
		CREATE FUNCTION late(key text, token bigint) RETURNS text
		LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
		BEGIN
			INSERT INTO effect VALUES (late.key, 'late');
			PERFORM idem_guard(late.key, token => late.token);
			RETURN 'welcome';
		EXCEPTION WHEN OTHERS THEN
			RETURN SQLSTATE;
		END $$;

		-- A held key: let it be done again, or do it and say so.
		CREATE FUNCTION settle(key text, reopen boolean) RETURNS void
		LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
		DECLARE
			answer jsonb;
		BEGIN
			IF NOT reopen THEN
				INSERT INTO effect (key) VALUES (settle.key)
				RETURNING jsonb_build_object(part, run) INTO STRICT answer;
			END IF;
			PERFORM idem_resolve(settle.key, answer, settle.reopen);
		END $$;
		ALTER FUNCTION ask OWNER TO app;
		ALTER FUNCTION late OWNER TO app;
		ALTER FUNCTION settle OWNER TO app;
	});
	return;
}

# So many clients. What they send first is one of the prologues, by turns.
sub new
{
	my ($class, $n, @prologue) = @_;
	my %self = (
		dir => PostgreSQL::Test::Utils::tempdir,
		asked => [],		# requests so far, [kind, number]
		journal => [],		# [client, key, part, run]
		token => [],		# [key, token]
		prepared => {},		# keys whose transaction was told to be prepared
		answered => {},		# keys that have an answer since they were last asked for
		worked => {},		# kinds of which work was done since load() began
		mortal => 1,		# may clients die?
		lost => 0,			# may their server leave them?
		died => {},			# kind => clients that died at work
		left => 0,			# how many of them may have left a prepared transaction
		written => 0,		# how much of the journal is in the database
		seconds => 0,
		strange => '');
	$self{client} = [ map { { id => $_, requests => [], prologue => $prologue[ $_ % (@prologue || 1) ] // '' } } 0 .. $n - 1 ];
	return bless \%self, $class;
}

# The keys of a request.
sub keys_of
{
	my ($kind, $number) = @_;
	return map { "$kind-$_" } $number .. $number + ($kind eq 'batch' ? $batch_size - 1 : 0);
}

# A request as psql shall run it.
sub request
{
	my ($self, $kind, $number, $mortal) = @_;
	my @key = keys_of($kind, $number);
	my @life = split /^\Q$die\E/m, $script{$kind};
	my $script = join '', @life;

	if ($mortal && @life > 1 && rand() < 0.1 && ($kind ne 'prepared' || $self->{left}++ < $max_prepared))
	{
		$script = join('', @life[ 0 .. rand $#life ]) . "\\echo died :key\n\\endif\n";
	}
	return "\\set key '$key[0]'\n\\set keys '{" . join(',', @key) . "}'\n$script";
}

# New requests, and some that others, or the same client, have made just before.
sub ask
{
	my ($self, $client) = @_;
	my $asked = $self->{asked};
	my @request;

	for (1 .. $requests_at_once)
	{
		my $back = rand() < 0.3 ? int rand min(scalar @$asked, $recent) : 0;

		push @$asked, [ $kinds[ rand @kinds ], scalar @$asked ] unless $back;
		push @request, $asked->[ -1 - $back ];
	}
	push @{ $client->{requests} }, @request;
	return join '', map { $self->request(@$_, $self->{mortal}) } @request;
}

# One psql for each script.
sub start
{
	my ($self, $client, $node, $script) = @_;
	my $file = "$self->{dir}/$client->{id}.sql";

	open my $fh, '>', $file or die "$file: $!";
	print $fh "$client->{prologue}\n$script";
	close $fh or die "$file: $!";
	$client->{out} = $client->{err} = '';
	$client->{fresh} = 1;
	$client->{run} = IPC::Run::start(
		[
			'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose',
			'-d', $node->connstr('postgres') . ' user=app', '-f', $file
		],
		'<', \'', '>', \$client->{out}, '2>', \$client->{err});
	return;
}

# What psql says, in one way or another, when its server has left it.
my $left = qr/connection to server|server closed the connection|could not (?:send|receive) data/;

# Listen to a client; false if it has ended. Nothing may go wrong, unless its server
# is lost: then it may say so, and nothing else.
sub pump
{
	my ($self, $client) = @_;
	return 0 unless $client->{run};

	$client->{run}->pump_nb;
	my $alive = $client->{run}->pumpable;
	if (!$alive)
	{
		$client->{run}->finish;
		my $status = $client->{run}->result || 0;
		delete $client->{run};
		$self->{strange} .= "status $status: $client->{err}"
		  unless $status == 0 || $self->{lost} && $client->{err} =~ $left && $client->{err} !~ /ERROR:/;
	}
	while ($client->{out} =~ s/^(.*)\n//)
	{
		$self->hear($client, $1);
	}
	return $alive;
}

sub hear
{
	my ($self, $client, $line) = @_;

	if ($line =~ /^token (\S+) (\d+)$/)
	{
		push @{ $self->{token} }, [ $1, $2 ];
	}
	elsif ($line =~ /^prepared (\S+)$/)
	{
		$self->{prepared}{$1} = 1;
	}
	elsif ($line =~ /^died (\w+)/)
	{
		$self->{died}{$1}++;
	}
	elsif ($line =~ /^(claimed|replayed|step|failed) (\{.*\})$/)
	{
		my ($outcome, $answers) = ($1, $2);
		while ($answers =~ /"(\w+)-(\d+)": (null|\{([^}]*)\})/g)
		{
			my ($kind, $key, $response) = ($1, "$1-$2", $4 // '');
			push @{ $self->{journal} }, [ $client->{id}, $key, $1, $2 ]
			  while $response =~ /"(\w+)": "([\w-]+)"/g;
			$self->{worked}{$kind} = 1 if $outcome eq 'claimed' && $client->{fresh};
			$self->{answered}{$key} = 1 if $outcome ne 'step';
		}
	}
	elsif ($line !~ /^(in_progress|held) /)
	{
		$self->{strange} .= "$line\n";
	}
	return;
}

# How much clients have been told so far.
sub told
{
	my ($self) = @_;
	return scalar @{ $self->{journal} };
}

# Clients come with new requests until so many seconds have passed, work of every
# kind was begun and done, clients have died in it, and $enough, if given, says so.
sub load
{
	my ($self, $node, $seconds, $enough) = @_;
	my $deadline = time + $seconds;

	$self->{seconds} += $seconds;
	$self->{worked} = {};
	$_->{fresh} = 0 for @{ $self->{client} };
	while (time < $deadline
		|| (grep { !$self->{worked}{$_} } @kinds)
		|| ($self->{mortal} && grep { !$self->{died}{$_} } @mortal)
		|| ($enough && !$enough->()))
	{
		die "the load does not come to its end: $self->{strange}"
		  if time > $deadline + 2 * $PostgreSQL::Test::Utils::timeout_default;
		for my $client (@{ $self->{client} })
		{
			$self->pump($client) or $self->start($client, $node, $self->ask($client));
		}
		sleep 0.01;
	}
	return;
}

# The clients come to their end.
sub finish
{
	my ($self) = @_;
	while (grep { $self->pump($_) } @{ $self->{client} })
	{
		sleep 0.01;
	}
	return;
}

# The same, but their server is lost.
sub lose
{
	my ($self) = @_;

	local $self->{lost} = 1;
	$self->finish;
	return;
}

# Bring rows in.
sub copy
{
	my ($self, $node, $table, @rows) = @_;
	my $file = "$self->{dir}/$table";

	open my $fh, '>', $file or die "$file: $!";
	print $fh join("\t", @$_), "\n" for @rows;
	close $fh or die "$file: $!";
	$node->safe_psql('postgres', "\\copy $table FROM '$file'");
	return;
}

# The rest of the journal.
sub write_journal
{
	my ($self, $node) = @_;
	my @rest = @{ $self->{journal} }[ $self->{written} .. $#{ $self->{journal} } ];

	$self->copy($node, 'journal', map { [ @$_[ 1 .. 3 ] ] } @rest);
	$self->{written} += @rest;
	return;
}

# The coordinator of prepared transactions is back: what he was told to be prepared
# he commits, the rest he rolls back. Returns those that he was told of and that are
# neither prepared nor committed. With $any there must be some to decide, else none.
sub decide
{
	my ($self, $node, $any) = @_;
	my %prepared = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts');

	is(%prepared ? 1 : 0, $any, $node->name . ': are there prepared transactions?');
	is($node->safe_psql('postgres', q{SELECT gid, ask(gid) FROM pg_prepared_xacts WHERE ask(gid) <> 'in_progress'}),
		'', $node->name . ': prepared transactions hold their keys');
	$node->safe_psql('postgres', join ";\n",
		map { ($self->{prepared}{$_} ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$_'" } sort keys %prepared);
	$self->{left} = 0;
	delete $self->{died}{prepared};
	my %done = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', q{SELECT key FROM effect WHERE key LIKE 'prepared-%'});
	return grep { !$done{$_} } sort keys %{ $self->{prepared} };
}

# What is here now that the server is lost? Effect and record tell the same, and
# whatever clients were told among the first so many words is there. Of the rest
# some may be lost; returns how many. $prepared: are prepared transactions here, too?
sub recover
{
	my ($self, $node, $safe, $prepared) = @_;
	my $name = $node->name;
	my $ask = sub { $node->safe_psql('postgres', $_[0]) };

	is($ask->('SELECT * FROM contradiction LIMIT 5'), '', "$name: effects and records are the same");
	my @undone = $self->decide($node, $prepared // 1);
	my %safe = map { $$_[1] => 1 } @{ $self->{journal} }[ 0 .. $safe - 1 ];
	is(join(' ', grep { $safe == $self->told || $safe{$_} } @undone), '',
		"$name: what was prepared is prepared or committed");
	is($ask->('SELECT * FROM contradiction LIMIT 5'), '', "$name: the same once all is decided");

	$ask->('TRUNCATE journal');
	$self->copy($node, 'journal', map { [ @$_[ 1 .. 3 ] ] } @{ $self->{journal} }[ 0 .. $safe - 1 ]);
	is($ask->('SELECT count(*) FROM (TABLE journal EXCEPT TABLE effect) AS x'), 0,
		"$name: nothing is lost of what must be there");
	$self->{written} = $safe;
	$self->write_journal($node);
	my $lost = $ask->(q{
		WITH lost AS (
			DELETE FROM journal WHERE (key, part, run) IN (TABLE journal EXCEPT TABLE effect)
			RETURNING key, part, run)
		SELECT count(DISTINCT (key, part, run)) FROM lost});
	note "$name: $self->{written} answers before the loss, $lost of them lost";

	# The dead have left leases. They are as good as ever, and then they run out.
	is($ask->(q{SELECT key, ask(key) FROM idem_key WHERE state = 'p' AND ask(key) <> 'in_progress'}), '',
		"$name: leases are live");
	cmp_ok($ask->(q{
		WITH dead AS (UPDATE idem_key SET lease_until = clock_timestamp() WHERE state = 'p' RETURNING takeover)
		SELECT count(DISTINCT takeover) FROM dead}), '==', 3, "$name: leases of the dead, of every policy");
	is($ask->(q{
		SELECT key, takeover, ask(key) FROM idem_key
		 WHERE state = 'p' AND takeover <> 'r' AND ask(key) <> CASE takeover WHEN 'h' THEN 'held' ELSE 'failed' END}), '',
		"$name: which rules when they have run out");
	return $lost;
}

# All requests once more, by the same clients with the same keys, until each has its
# answer. What is held must be found out about: it was not done.
sub retry
{
	my ($self, $node) = @_;
	my $name = $node->name;
	my @unanswered;

	$self->{answered} = {};
	for (1 .. 20)
	{
		@unanswered = ();
		for my $client (@{ $self->{client} })
		{
			my @todo = grep { grep { !$self->{answered}{$_} } keys_of(@$_) } @{ $client->{requests} };
			next unless @todo;
			push @unanswered, @todo;
			$self->start($client, $node, join '', map { $self->request(@$_, 0) } @todo);
		}
		last unless @unanswered;
		$self->finish;

		$node->safe_psql('postgres', q{
			SELECT settle(key, row_number() OVER () % 2 = 0)
			  FROM idem_key WHERE state = 'p' AND takeover = 'h'});
	}
	is(scalar(@unanswered), 0, "$name: every request has its answer");
	return;
}

# The end of the story.
sub check
{
	my ($self, $node) = @_;
	my $name = $node->name;
	my $ask = sub { $node->safe_psql('postgres', $_[0]) };
	my %asked = map { $_ => 1 } map { keys_of(@$_) } map { @{ $_->{requests} } } @{ $self->{client} };

	$self->write_journal($node);
	$ask->('TRUNCATE asked, token');
	$self->copy($node, 'asked', map { [$_] } keys %asked);
	$self->copy($node, 'token', @{ $self->{token} });

	note sprintf '%d s, %d clients, %d keys, %s effects, %d answers, %d leases', $self->{seconds},
	  scalar @{ $self->{client} }, scalar keys %asked, $ask->('SELECT count(*) FROM effect'),
	  $self->told, scalar @{ $self->{token} };
	is($ask->(q{
		SELECT key, count(*) FROM asked LEFT JOIN effect USING (key) GROUP BY key
		HAVING count(run) <> CASE WHEN key LIKE 'flow-%' THEN 2 ELSE 1 END
			AND NOT (count(run) = 0 AND ask(key) = 'failed' AND key LIKE 'fail-%')
		 LIMIT 5}), '', "$name: every request has its effect once, or has failed for good");
	cmp_ok($ask->(q{SELECT count(*) FROM asked WHERE key LIKE 'fail-%' AND key NOT IN (SELECT key FROM effect)}),
		'>', 0, "$name: some have failed by their policy");
	is($ask->('SELECT key FROM effect EXCEPT TABLE asked LIMIT 5'), '', "$name: and there are no others");
	is($ask->('SELECT * FROM contradiction LIMIT 5'), '', "$name: each is on record, and nothing else is");
	is($ask->(q{
		SELECT key
		  FROM idem_key AS k JOIN (SELECT key, jsonb_object_agg(part, run) FROM effect GROUP BY key) AS e (key, parts) USING (key)
		 WHERE k.state = 'f' AND k.response IS DISTINCT FROM e.parts LIMIT 5}), '',
		"$name: with all of its parts");
	is($ask->('SELECT count(*) FROM (TABLE journal EXCEPT TABLE effect) AS x'), 0,
		"$name: whatever a client was told is this one effect");
	is($ask->(q{SELECT key FROM idem_key WHERE state <> 'f' AND key NOT LIKE 'fail-%' LIMIT 5}), '',
		"$name: all others are finished");
	is($ask->(q{
		SELECT t.key, late(t.key, t.token)
		  FROM token AS t LEFT JOIN idem_key AS k USING (key)
		 WHERE late(t.key, t.token) <> CASE WHEN k.token IS DISTINCT FROM t.token THEN 'ID003'
											WHEN k.state = 'f' THEN 'ID002'
											ELSE 'welcome' END LIMIT 5}), '',
		"$name: who lost his lease is refused");
	cmp_ok($ask->(q{
		SELECT count(*) FROM token AS t LEFT JOIN idem_key AS k USING (key)
		 WHERE k.token IS DISTINCT FROM t.token}), '>', 0, "$name: and some have");
	is($ask->(q{SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'),
					   (SELECT count(*) FROM pg_prepared_xacts)}), '0|0', "$name: nothing is left in flight");
	is($self->{strange}, '', "$name: no client met with anything else");
	return;
}

1;
