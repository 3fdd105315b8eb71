# The flow of examples/flow is stopped at every point between two of its
# statements: its backend is terminated, or killed, or the session is merely late
# and the lease runs out under it. The retry goes on where the first run has
# ended. Whatever the point: one order, one charge, one mail.
#
# Statements that are transactions by themselves are given a BEGIN and a COMMIT,
# so that there are points before their commits, too.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Restart;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('flow');
$node->init;
$node->append_conf('postgresql.conf', <<'EOT');
max_connections = 100
restart_after_crash = on
statement_timeout = '60s'
EOT
$node->start;
$node->command_ok(
	[ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-f', 'examples/flow/setup.sql', 'postgres' ],
	'the shop, the payment service, the mail server');

my $flow = slurp_file('examples/flow/flow.sql');
my @statement = statements($flow);
my @expected = map { expected($_) } 0 .. @statement;
my $first_commit = (grep { $expected[$_]{leased} } 0 .. $#expected)[0];
note join "\n", 'points', map { point($_) } 0 .. $#expected;

# The program is what we think it is.
is(scalar(grep { /idem_step_finish/ } @statement), 3, 'three steps');
is(scalar(grep { /`psql/ } @statement), 2, 'two calls to the outside');
is("@{$expected[-1]{steps}}", 'order charge mail', 'all of them come to their end');
ok($expected[-1]{finished}, 'and so does the flow');

# Sessions that lost their server; kept, so that nobody waits for them.
my @lost;

# The statements of a psql script, each with the psql commands before it.
sub statements
{
	my ($script) = @_;
	my ($statement, $commands, $begun, @all) = ('', '', 0);

	for my $line (grep { !/^\s*(--|$)/ } split /\n/, $script)
	{
		if ($statement eq '' && $line =~ /^\s*\\(?!set)/)
		{
			$commands .= "$line\n";
			next;
		}
		$statement .= "$line\n";
		next unless $line =~ /;$|\\/;

		my $alone = !$begun && $statement =~ /idem_(claim|step|step_finish|finish)\(/;
		$begun = 1 if $statement =~ /^\s*BEGIN/;
		$begun = 0 if $statement =~ /^\s*COMMIT/;
		push @all, $commands . ($alone ? 'BEGIN;' : $statement);
		push @all, $statement, 'COMMIT;' if $alone;
		($statement, $commands) = ('', '');
	}
	return @all;
}

# What shall be there when the first n statements have run: what is committed,
# what was asked for outside, and whether the open transaction keeps others from
# taking over.
sub expected
{
	my ($n) = @_;
	my %is = (steps => [], charge => 0, mail => 0, leased => 0, finished => 0, guarded => 0);
	my @at_commit;

	for (@statement[ 0 .. $n - 1 ])
	{
		push @at_commit, [ leased => 1 ] if /idem_claim\(/;
		push @at_commit, [ steps => [ @{ $is{steps} }, $1 ] ] if /idem_step_finish\(:'key', '(\w+)'/;
		push @at_commit, [ finished => 1, leased => 0 ] if /idem_finish\(/;
		$is{charge}++ if /`psql .* payments/;
		$is{mail}++ if /`psql .* mail/;
		if (/COMMIT/)
		{
			%is = (%is, map { @$_ } @at_commit);
			@at_commit = ();
		}
		$is{guarded} = @at_commit > 0;
	}
	return \%is;
}

sub point
{
	my ($n) = @_;
	return '0, before everything' if $n == 0;
	for ($statement[ $n - 1 ])
	{
		return "$n, after $1 $2" if /(idem_step\w*)\(:'key', '(\w+)'/;
		return "$n, after $1" if /(idem_\w+)/;
		return "$n, after the call to $1" if /`psql .* -d (\w+)/;
		return "$n, after $1" if /^\s*(BEGIN|COMMIT|INSERT INTO \w+)/m;
		return "$n";
	}
}

# Begin the flow, and stop after n statements.
sub begin
{
	my ($key, $n) = @_;
	my $session = $node->background_psql('postgres',
		on_error_stop => 0, extra_params => [ '-v', "key=$key" ]);
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	my %run = (key => $key, session => $session, pid => $pid, n => $n, out => '');

	go_on(\%run, 0, $n);
	die "$key: $run{err}" if defined $run{err};
	return \%run;
}

# Statements from .. to - 1, until one of them fails.
sub go_on
{
	my ($run, $from, $to) = @_;
	my $session = $run->{session};

	for my $statement (@statement[ $from .. $to - 1 ])
	{
		$run->{out} .= $session->query($statement) . "\n";
		next if $session->{stderr} eq '';
		$run->{err} = $session->{stderr};
		$session->{stderr} = '';
		last;
	}
	return;
}

# The whole program, as a client would run it; then what is to be known of the key.
sub run_flow
{
	my ($key) = @_;
	my ($out, $err);
	my $status = $node->psql('postgres', $flow,
		extra_params => [ '-v', "key=$key" ], stdout => \$out, stderr => \$err);
	return $status == 0 ? $out : "status $status: $out $err";
}

sub steps
{
	my ($key) = @_;
	return $node->safe_psql('postgres',
		"SELECT step, result, attempt FROM idem_steps('$key')");
}

# The steps of run_flow() that were answered done, and what it ended with.
sub told
{
	my ($out) = @_;
	my $done = join ' ', $out =~ /^=> (\w+) done: t$/mg;
	return ($out =~ /^=> (\w+)/)[0], $done, ($out =~ /(\{.*\})$/)[0];
}

my $set_back = q{UPDATE idem_key SET lease_until = clock_timestamp() - interval '1 s'
	WHERE state = 'p' AND key = };

# The retry, to the end, and once more; all is done once.
sub resume
{
	my ($run, $how) = @_;
	my ($key, $n) = @$run{qw(key n)};
	my $is = $expected[$n];
	my $name = "$how at " . point($n);
	my $before = steps($key);

	my @stored = $run->{out} =~ /^(\d+)$/mg;
	is(join(' ', $before =~ /^(\w+)\|\d+\|1$/mg), "@{$is->{steps}}",
		"$name: the steps that were committed are done, and no others");
	is(join(' ', $before =~ /^\w+\|(\d+)/mg), "@stored[0 .. $#{$is->{steps}}]",
		"$name: with the results that the first run has stored");

	my ($outcome, $done, $response) = told(run_flow($key));
	is($outcome, $is->{finished} ? 'replayed' : 'claimed', "$name: the retry");
	is($done, $is->{finished} ? '' : "@{$is->{steps}}", "$name: is told what is done")
	  unless $is->{finished};

	my $attempt = $is->{leased} ? 2 : 1;
	my $after = steps($key);
	is(join(' ', $after =~ /^(\w+)/mg), 'order charge mail', "$name: the steps in order");
	is(substr($after, 0, length $before), $before, "$name: those of the first run unchanged");
	my $new = () = substr($after, length $before) =~ /\|$attempt$/mg;
	is($new, 3 - @{$is->{steps}}, "$name: and the rest of attempt $attempt");
	my ($order, $charge, $mail) = $after =~ /^\w+\|(\d+)/mg;
	is($response, qq({"mail": $mail, "order": $order, "charge": $charge}),
		"$name: the response is made of them");

	is(join(' ', told(run_flow($key))), "replayed  $response", "$name: and replayed");
	$run->{result} = "$order|$charge|$mail";
	return;
}

# The key, its order and payment; the uuids of its charge and mail.
sub in_shop
{
	my ($key) = @_;
	return split /\n/, $node->safe_psql('postgres', qq{
		SELECT state, attempt, (SELECT count(*) FROM orders WHERE key = '$key')
		  FROM idem_lookup('$key');
		SELECT id, charge_id FROM orders JOIN payment ON order_id = id WHERE key = '$key';
		SELECT idem_derive('$key', 'charge'), idem_derive('$key', 'mail')});
}

# What there is in the end, in all three databases.
sub done_once
{
	my ($run, $how, %asked) = @_;
	my ($key, $n) = @$run{qw(key n)};
	my $is = $expected[$n];
	my $name = "$how at " . point($n);
	my ($state, $order, $uuids) = in_shop($key);
	my ($charge_key, $mail_key) = split /\|/, $uuids;

	is($state, 'finished|' . ($is->{leased} ? 2 : 1) . '|1', "$name: finished, one order");
	# asked for once more where the answer was lost
	my $charge = $node->safe_psql('payments',
		"SELECT id, requests FROM charge WHERE key = '$charge_key'");
	my $mail = $node->safe_psql('mail',
		"SELECT id, requests FROM message WHERE message_id = '$mail_key'");
	my %step = map { $_ => 1 } @{ $is->{steps} };
	$asked{charge} //= $is->{charge} + !$step{charge};
	$asked{mail} //= $is->{mail} + !$step{mail};
	my ($order_id, $charge_id, $mail_id) = split /\|/, $run->{result};
	is($order, "$order_id|$charge_id", "$name: one payment");
	is($charge, "$charge_id|$asked{charge}", "$name: one charge, asked for as often as needed");
	is($mail, "$mail_id|$asked{mail}", "$name: one mail");
	return;
}

sub nothing_else
{
	my ($how, $flows) = @_;

	is($node->safe_psql('postgres', q{
		SELECT count(*) FROM idem_step AS s
		 WHERE NOT EXISTS (SELECT FROM idem_key AS k WHERE k.generation = s.generation)}),
		0, "$how: no step without its key");
	is($node->safe_psql('postgres', q{
		SELECT (SELECT count(*) FROM idem_key WHERE state = 'f'),
			   (SELECT count(*) FROM idem_step), (SELECT count(*) FROM orders),
			   (SELECT count(*) FROM payment)})
		  . '|' . $node->safe_psql('payments', 'SELECT count(*) FROM charge')
		  . '|' . $node->safe_psql('mail', 'SELECT count(*) FROM message'),
		join('|', $flows, 3 * $flows, ($flows) x 4), "$how: nothing but $flows flows");
	is($node->safe_psql('postgres', q{
		SELECT (SELECT count(*) FROM idem_in_flight),
			   (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')}),
		'0|0', "$how: no claim and no lock is left");
	return;
}

my $flows = 0;

# The backends go: all flows are at their points, and all backends end at once.

for my $how ('terminated', 'killed')
{
	my @run = map { begin("$how-$_", $_) } 0 .. $#expected;
	my @pid = map { $_->{pid} } @run;

	if ($how eq 'killed')
	{
		# the postmaster would see the first one die, and send the rest away itself
		my ($postmaster) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
		kill('STOP', $postmaster);
		is(kill('KILL', @pid), scalar(@pid), 'the backends are killed');
		kill('CONT', $postmaster);
	}
	else
	{
		is($node->safe_psql('postgres', sprintf q{
			SELECT count(*) FROM unnest('{%s}'::int[]) AS pid WHERE pg_terminate_backend(pid)},
			join ',', @pid), scalar(@pid), 'the backends are terminated');
	}
	ok(wait_for($node, sprintf(q{
		SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid IN (%s))
	}, join ',', @pid)), "$how: they have gone");
	push @lost, map { $_->{session} } @run;

	for my $run (@run)
	{
		if ($expected[ $run->{n} ]{leased})
		{
			is((told(run_flow($run->{key})))[0], 'in_progress',
				"$how at " . point($run->{n}) . ': the lease lives on');
			$node->safe_psql('postgres', "$set_back '$run->{key}'");
		}
		resume($run, $how);
		done_once($run, $how);
	}
	$flows += @run;
	nothing_else($how, $flows);
}

# The first run is not killed, but late: the lease has run out right behind the
# claim, and its steps are welcome until somebody takes over. Then the first run
# goes on, and is refused at its next word, what it has written with it.

for my $n ($first_commit .. $#expected)
{
	my $is = $expected[$n];
	my $name = 'late at ' . point($n);
	my $run = begin("late-$n", $first_commit);

	$node->safe_psql('postgres', "$set_back '$run->{key}'");
	$run->{n} = $n;
	go_on($run, $first_commit, $n);
	is($run->{err}, undef, "$name: so far welcome");

	if ($is->{guarded})
	{
		is($node->safe_psql('postgres', qq{
			SELECT outcome FROM idem_claim('$run->{key}', lease => '5 min', wait => '0')}),
			'in_progress', "$name: nobody takes over before the commit");
		go_on($run, $n, scalar @statement);
		is($run->{err}, undef, "$name: the first run comes to its end");
		my ($outcome, $done, $response) = told(run_flow($run->{key}));
		is($outcome, 'replayed', "$name: which is replayed");
		like($run->{out}, qr/^\Q$response\E$/m, "$name: with its response");
		$flows++;
		$run->{session}->quit;
		next;
	}

	resume($run, 'late');
	if ($is->{finished})
	{
		done_once($run, 'late');
	}
	else
	{
		# it may get as far as the next call to the outside, under the same key
		my ($charge, $mail) = @$is{qw(charge mail)};
		for (@statement[ $n .. $#statement ])
		{
			last if /idem_/ && !/idem_derive/;
			$charge++ if /`psql .* payments/;
			$mail++ if /`psql .* mail/;
		}
		my %step = map { $_ => 1 } @{ $is->{steps} };

		$run->{session}->query_safe('\set VERBOSITY sqlstate');
		go_on($run, $n, scalar @statement);
		like($run->{err} // 'no error', qr/ERROR:  ID003$/, "$name: refused");
		is($run->{session}->query('COMMIT'), '', "$name: its transaction has failed");
		done_once($run, 'late', charge => $charge + !$step{charge}, mail => $mail + !$step{mail});
	}
	$flows++;
	$run->{session}->quit;
}
nothing_else('late', $flows);

# A failure that is to be retried keeps the steps. The end of a life of the key
# does not: what was done in it is not answered as done in the next one.

my ($charged) = grep { "@{$expected[$_]{steps}}" eq 'order charge' } 0 .. $#expected;
my %end = (
	failed => q{SELECT FROM idem_fail(:'key', retry_in => '0', token => :token)},
	released => q{SELECT idem_release(:'key', token => :token) \g /dev/null},
	expired => q{UPDATE idem_key SET lease_until = clock_timestamp(),
		expires_at = clock_timestamp() WHERE key = :'key'},
	'expired and removed' => q{UPDATE idem_key SET lease_until = clock_timestamp(),
		expires_at = clock_timestamp() WHERE key = :'key'; SELECT FROM idem_expire()},
	forgotten => q{SELECT FROM idem_forget(:'key')});
for my $how (sort keys %end)
{
	my $run = begin("$how", $charged);
	my $kept = $how eq 'failed';

	$run->{session}->query_safe($end{$how});
	$run->{session}->quit;

	my $before = $kept ? "order\ncharge\n" : '';
	is(steps($how) =~ s/\|.*//gr, $before =~ s/\n$//r, "$how: steps of this life");
	my ($outcome, $done, $response) = told(run_flow($how));
	is("$outcome $done", $kept ? 'claimed order charge' : 'claimed ', "$how: steps done");
	is(steps($how) =~ s/\|\d+\|/|/gr, $kept ? "order|1\ncharge|1\nmail|2" :
		"order|1\ncharge|1\nmail|1", "$how: steps in the end");
	my @shop = in_shop($how);
	is($shop[0], 'finished|' . ($kept ? '2|1' : '1|2'), "$how: orders");
	is($node->safe_psql('payments', sprintf q{
		SELECT count(*), sum(requests) FROM charge WHERE key = '%s'}, $shop[-1] =~ s/\|.*//r),
		$kept ? '1|1' : '1|2', "$how: one charge, for the derived key is the same in every life");
	is($node->safe_psql('postgres', q{
		SELECT count(*) FROM idem_step AS s
		 WHERE NOT EXISTS (SELECT FROM idem_key AS k WHERE k.generation = s.generation)}),
		0, "$how: no step without its key");
}

$node->safe_psql('postgres', q{
	UPDATE idem_key SET expires_at = clock_timestamp();
	SELECT idem_expire()});
is($node->safe_psql('postgres', q{
	SELECT (SELECT count(*) FROM idem_key), (SELECT count(*) FROM idem_step)}),
	'0|0', 'keys expire with their steps');

my $log = slurp_file($node->logfile);
unlike($log, qr/TRAP|PANIC|terminated by signal (?!9)/, 'the server did not crash by itself');

$node->stop;
done_testing();
