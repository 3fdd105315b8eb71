# The consumers of examples/consumer, as an application has them: messages go to a
# receiver that fails, hangs, refuses and answers late; connections are cut, messages
# stolen, consumers stopped and killed. Each message has one effect.

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

my $dir = 'examples/consumer';
my %program = (python => ['/usr/bin/python3', 'py'], node => ['node', 'js']);
my %needs = (python => 'psycopg2', node => 'pg');
my %lacks = (
	python => system('/usr/bin/python3 -c "import psycopg2" 2>/dev/null'),
	node => system("cd $dir && node -e 'require(\"pg\")' 2>/dev/null"));
plan skip_all => 'there is neither psycopg2 nor pg' if $lacks{python} && $lacks{node};

# Retries come soon, and a lease is over before the receiver is.
$ENV{LEASE} = 2;
$ENV{TIMEOUT} = 6;
$ENV{GRACE} = 1;

my $server = PostgreSQL::Test::Cluster->new('consumer');
$server->init;
$server->append_conf('postgresql.conf', "restart_after_crash = on\n");
$server->start;
$ENV{PGHOST} = $server->host;
$ENV{PGPORT} = $server->port;
$ENV{PGDATABASE} = 'postgres';
$ENV{PGUSER} = getpwuid($>);	# pg does not ask the system

sub sql { return $server->safe_psql('postgres', $_[0]); }

# whatever it is, it comes
sub until_true
{
	my ($what, $is_so) = @_;
	for (1 .. 20 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 if $is_so->();
		sleep 0.05;
	}
	die "waited in vain until $what";
}

sub until_sql
{
	my ($query) = @_;
	return $server->poll_query_until('postgres', $query) || die "waited in vain for: $query";
}

sql(q{
	CREATE EXTENSION idempotency;
	CREATE TABLE invoice (n int CHECK (n <> 13));
	SELECT idem_configure_queue(q, max_attempts => 3, backoff_base => '10 ms', backoff_cap => '10 ms')
	  FROM unnest('{python,node}'::text[]) AS l, unnest(ARRAY[l, l || '-invoices']) AS q;
});

my ($language, $log, $url);

sub start
{
	my ($name, @arguments) = @_;
	my ($interpreter, $suffix) = @{ $program{$language} };
	my $consumer = IPC::Run::start([ $interpreter, "$dir/$name.$suffix", @arguments ],
		'<', \undef, '>&', "$PostgreSQL::Test::Utils::log_path/$language-$name.log");
	return $consumer;
}

sub stop
{
	my ($consumer, $signal) = @_;
	$consumer->signal($signal);
	$consumer->finish;
	return $consumer->full_result(0);
}

sub enqueue
{
	my ($n, $kind) = @_;
	return sql(qq{SELECT idem_enqueue('$language', '{"n": $n, "kind": "$kind"}')});
}

# "answer/effect" of each request about an order, in their order
sub requests
{
	my ($n) = @_;
	return join ' ', map { (split /\t/)[2] eq $n ? join('/', (split /\t/)[4, 5]) : () }
	  split /\n/, slurp_file($log);
}

sub until_requested
{
	my ($n, $want) = @_;
	return until_true("$n is requested", sub { requests($n) =~ $want });
}

# what a "slow" request waits for
sub go   { append_to_file("$log.go", ''); return; }
sub hold { unlink "$log.go"; return; }

sub until_done
{
	return until_sql("SELECT count(*) = 0 FROM idem_messages WHERE queue = '$language'");
}

sub deliveries
{
	my $consumer = start('consumer', $language, $url);

	# what may befall a delivery
	enqueue(1, 'ok');
	enqueue(2, 'failing');
	enqueue(3, 'refused');
	enqueue(4, 'busy');
	enqueue(5, 'late');
	enqueue(6, 'hanging');
	my $slow = enqueue(7, 'slow');
	sql(qq{BEGIN; SELECT idem_enqueue('$language', '{"n": 8, "kind": "ok"}'); ROLLBACK});
	until_requested(7, qr/./);
	my $first = sql("SELECT lease_until FROM idem_messages WHERE id = $slow");
	until_sql("SELECT clock_timestamp() > '$first'");
	is(sql("SELECT state, attempt FROM idem_messages WHERE id = $slow"), 'in_flight|1',
		"$language: a long delivery keeps its lease");
	go();
	until_done();
	is(requests(1), '200/1', "$language: delivered");
	is(requests(2), '500/0 200/1', "$language: again after 500");
	is(requests(3), '422/0', "$language: not again after 422");
	is(requests(4), '429/0 200/1', "$language: again after 429");
	is(requests(5), '0/1 200/0', "$language: again after an answer that came too late, and no second effect");
	is(requests(6), '0/0 200/1', "$language: again after no answer");
	is(requests(7), '200/1', "$language: once, though it took long");
	is(requests(8), '', "$language: nothing of a transaction that was rolled back");
	is(sql("SELECT payload->>'n', attempt, last_error->>'status' FROM idem_dead_letters WHERE queue = '$language'"),
		'3|1|422', "$language: what was refused is a dead letter");
	my @busy = map { (split /\t/)[2] eq '4' ? (split /\t/)[0] : () } split /\n/, slurp_file($log);
	cmp_ok($busy[1] - $busy[0], '>=', 1, "$language: Retry-After is honoured");

	# somebody else has it
	hold();
	my $stolen = enqueue(20, 'slow');
	until_requested(20, qr/./);
	sql("UPDATE idem_message SET token = 1, lease_until = 'infinity' WHERE id = $stolen");
	go();
	enqueue(21, 'ok');
	until_requested(21, qr/./);
	until_sql("SELECT count(*) = 1 FROM idem_messages WHERE queue = '$language'");
	is(sql("SELECT id, token FROM idem_message WHERE queue = '$language'"), "$stolen|1",
		"$language: a message that somebody else has is left to him");
	sql("SELECT idem_ack($stolen, 1)");

	# the connections are lost, with a message in its hands, and then the server
	hold();
	enqueue(30, 'slow');
	until_requested(30, qr/./);
	sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		  WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()");
	go();
	until_done();
	$server->restart('immediate');
	enqueue(31, 'ok');
	until_done();
	is(requests(30) . ' ' . requests(31), '200/1 200/1', "$language: a lost connection is made again");

	# told to stop, with a message in its hands
	hold();
	my $back = enqueue(40, 'slow');
	until_requested(40, qr/./);
	is(stop($consumer, 'TERM'), 0, "$language: stops on SIGTERM");
	is(sql("SELECT state, lease_until IS NULL, history->0->'error'->>'message' FROM idem_messages WHERE id = $back"),
		'ready|t|the consumer was stopped', "$language: and gives back what it has");
	$consumer = start('consumer', $language, $url);
	until_done();
	is(requests(40), '200/1 200/0', "$language: the next one goes on");

	# killed with a message in its hands
	enqueue(50, 'slow');
	until_requested(50, qr/./);
	stop($consumer, 'KILL');
	$consumer = start('consumer', $language, $url);
	until_done();
	is(requests(50), '200/1 200/0', "$language: somebody else takes over from one that was killed");

	# nothing to do: it waits for messages in the server
	until_sql("SELECT count(*) > 0 FROM pg_stat_activity
				WHERE state = 'active' AND query ~ 'idem_dequeue' AND pid <> pg_backend_pid()");
	is(stop($consumer, 'INT'), 0, "$language: stops on SIGINT");
	go();
	return;
}

sub effects
{
	my $queue = "$language-invoices";

	sql("SELECT idem_enqueue('$queue', jsonb_build_object('n', n)) FROM generate_series(1, 20) AS n");

	# killed in the middle: its invoice waits for us
	sql('TRUNCATE invoice');
	my $lock = $server->background_psql('postgres');
	$lock->query_safe('BEGIN; LOCK TABLE invoice IN SHARE MODE');
	my $killed = start('effect', $queue);
	until_sql("SELECT count(*) = 1 FROM pg_locks WHERE relation = 'invoice'::regclass AND NOT granted");
	stop($killed, 'KILL');
	$lock->query_safe('COMMIT');
	$lock->quit;

	my $consumer = start('effect', $queue);
	until_sql("SELECT count(*) = 0 FROM idem_messages WHERE queue = '$queue'");
	is(sql('SELECT count(*), count(DISTINCT n) FROM invoice WHERE n <> 13'), '19|19',
		"$language: one effect for each message");
	is(sql("SELECT payload->>'n', attempt, last_error->>'message' ~ 'invoice_n_check'
			  FROM idem_dead_letters WHERE queue = '$queue'"),
		'13|3|t', "$language: what fails is counted, and becomes a dead letter");
	is(stop($consumer, 'TERM'), 0, "$language: stops on SIGTERM");
	return;
}

for my $each (qw(python node))
{
	$language = $each;
	SKIP: {
		skip "$language: there is no $needs{$language}", 1 if $lacks{$language};
		$log = PostgreSQL::Test::Utils::tempdir_short() . '/requests';
		my $port = '';
		append_to_file($log, '');
		my $receiver = IPC::Run::start([ '/usr/bin/python3', "$dir/receiver.py", $log ],
			'<', \undef, '>', \$port);
		$receiver->pump until $port =~ /\n/;
		chomp $port;
		$url = "http://127.0.0.1:$port/$language";
		deliveries();
		effects();
		$receiver->kill_kill;
	}
}

done_testing();
