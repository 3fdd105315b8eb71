// One measurement in a process of its own, or the list of them.
//
//   node driver.mjs list PEER                 its cases: "case|operations of ours"
//   node driver.mjs PEER CASE theirs|OPERATION SECONDS
//
// Both sides run in the same loop: CLIENTS operations at a time, connections from
// a pool of POOL. The last line of the output is the figures, as JSON.

import { readFileSync } from 'node:fs';
import { randomUUID } from 'node:crypto';
import pg from 'pg';

const CLIENTS = 8;
const POOL = 10;		// what all of the peers have by default
const REPEATED = 500;	// keys, if the case repeats what was done
const { PGHOST, POSTMASTER, CLK_TCK, UNNAMED } = process.env;

// Statements sent, each of which is a round trip. One without a name is parsed and
// planned each time.
let statements = 0;
const query = pg.Client.prototype.query;
pg.Client.prototype.query = function (first, ...rest) {
	statements++;
	if (UNNAMED && first?.name)
		delete first.name;
	return query.call(this, first, ...rest);
};

// A socket's directory may stand for the host, but a URL must have one.
function url(database) {
	return `postgresql://postgres@localhost/${database}?host=${encodeURIComponent(PGHOST)}`;
}

// utime, stime, cutime and cstime of a process, in ticks; none if it has ended.
function ticks(pid) {
	try {
		const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
		return stat.slice(stat.lastIndexOf(')') + 2).split(' ').slice(11, 15).map(Number);
	} catch {
		return [0, 0, 0, 0];
	}
}

// CPU of the backends is that of those that run, and what the postmaster has
// collected of those that have ended. Its other children live on.
async function look(control) {
	const { rows: [row] } = await control.query(
		`SELECT pg_current_wal_insert_lsn() - '0/0' AS wal,
			(SELECT array_agg(pid) FROM pg_stat_activity WHERE backend_type = 'client backend') AS pids`);
	const ended = ticks(POSTMASTER);
	const backends = row.pids.map(ticks).reduce((sum, t) => sum + t[0] + t[1], ended[2] + ended[3]);
	const node = process.cpuUsage();
	return {
		at: process.hrtime.bigint(), wal: Number(row.wal), statements,
		backend: backends * 1e6 / Number(CLK_TCK), node: node.user + node.system,
	};
}

// All workers until the time is over; what they have begun they end.
async function loop(operation, next, milliseconds) {
	const end = Date.now() + milliseconds;
	let done = 0;
	async function worker() {
		while (Date.now() < end) {
			await operation(next());
			done++;
		}
	}
	await Promise.all(Array.from({ length: CLIENTS }, worker));
	return done;
}

async function measure(name, what, side, seconds) {
	const peer = await import(`./${name}.mjs`);
	const { repeat, theirs } = peer.cases[what];
	const { start } = side === 'theirs' ? peer : await import('./ours.mjs');
	const database = side === 'theirs' ? name : 'ours';
	const control = new pg.Client(url(database));
	await control.connect();
	const { operations, stop } = await start({ url: url(database), max: POOL });
	const operation = operations[side === 'theirs' ? theirs : side];

	const keys = Array.from({ length: repeat ? REPEATED : 0 }, () => randomUUID());
	for (const key of keys)
		await operation(key, false);
	let turn = 0;
	const next = repeat ? () => keys[turn++ % keys.length] : () => randomUUID();
	const run = key => operation(key, Boolean(repeat));

	await loop(run, next, Math.min(3000, seconds * 500));
	const before = await look(control);
	const done = await loop(run, next, seconds * 1000);
	const after = await look(control);
	await stop();
	await control.end();

	const elapsed = Number(after.at - before.at) / 1e9;
	const per = column => (after[column] - before[column]) / done;
	return {
		peer: name, case: what, side, done, per_second: done / elapsed, wal_bytes: per('wal'),
		backend_us: per('backend'), node_us: per('node'),
		node_busy: (after.node - before.node) / 1e6 / elapsed,
		round_trips: (after.statements - before.statements - 1) / done,
	};
}

const [name, what, side, seconds] = process.argv.slice(2);
if (name === 'list') {
	const peer = await import(`./${what}.mjs`);
	for (const [key, { ours }] of Object.entries(peer.cases))
		console.log(`${key}|${ours.join(' ')}`);
} else {
	console.log(JSON.stringify(await measure(name, what, side, Number(seconds))));
}
process.exit(0);
