// Delivers the messages of a queue by HTTP.
//
//   node consumer.js QUEUE URL
//
// The environment names the database (PGHOST and the like), and may change SLOTS (how
// many deliveries at a time) and, in seconds, LEASE (how soon others take over from a
// consumer that died), TIMEOUT (of a delivery; it may be longer than the lease) and
// GRACE (how long deliveries may take to end after SIGTERM or SIGINT).

'use strict';

const { setTimeout: sleep } = require('node:timers/promises');
const pg = require('pg');

const [queue, url] = process.argv.slice(2);
const { request } = require(url?.startsWith('https:') ? 'node:https' : 'node:http');
const { SLOTS = 10, LEASE = 30, TIMEOUT = 60, GRACE = 20 } = process.env;
const WAIT = '5 s';		// for messages, before asking again

const STOPPED = new Error('the consumer was stopped');
const TIMED_OUT = new Error('timed out');
const TAKEN_OVER = new Error('somebody else has the message');

const busy = new Set();	// of { done, abort }, a delivery
let stopping = false;

// One connection waits for messages, others see to those that are there.
const pool = new pg.Pool({ max: 4, keepAlive: true });
const taker = new pg.Pool({ max: 1, keepAlive: true });
let takerPid;
taker.on('connect', client => { takerPid = client.processID; });
for (const each of [pool, taker])
	each.on('error', () => {});		// of an idle connection: the next one notices

// A statement, in a transaction of its own; again, if the connection is lost or the
// server cannot do it now. What had been done before is ID003 then.
async function sql(pool, text, values) {
	for (let attempt = 0; ; attempt++) {
		try {
			return (await pool.query(text, values)).rows;
		} catch (error) {
			if (error.severity && !/^(08|40|53|55|57)/.test(error.code))
				throw error;
			if (pool === taker && (stopping || error.code === '57014'))
				return [];
			console.error(`database: ${error.message}`);
		}
		await sleep(Math.random() * Math.min(5000, 100 * 2 ** attempt));
	}
}

// The same about a message; undefined if it is not ours any more (ID003).
async function ours(text, values) {
	try {
		return await sql(pool, text, values);
	} catch (error) {
		if (error.code !== 'ID003')
			throw error;
	}
}

// Of a Retry-After, which is a number or a date; null for none.
function seconds(retryAfter) {
	const span = /^\d+$/.test(retryAfter) ? Number(retryAfter)
		: (Date.parse(retryAfter) - Date.now()) / 1000;
	return Number.isNaN(span) ? null : `${Math.min(Math.max(span, 0), 86400)} s`;
}

// Not by fetch: in Node 18 it may forget the signal that is to abort it, and never end.
function send(message, signal) {
	return new Promise((resolve, reject) => {
		const call = request(url, {
			method: 'POST',
			headers: {
				'Content-Type': 'application/json',
				'Content-Length': Buffer.byteLength(message.payload),
				'Idempotency-Key': message.downstream_key,
			},
			signal,
		}, resolve);
		call.on('error', reject);
		call.end(message.payload);
	});
}

// How a delivery went: nothing, or what idem_nack shall be told.
async function post(message, signal) {
	try {
		const answer = await send(message, signal);
		const status = answer.statusCode;
		answer.destroy();			// all else that it says
		if (status >= 200 && status < 300)
			return undefined;
		return {
			error: { status },
			retryIn: seconds(answer.headers['retry-after']),
			final: status >= 400 && status < 500 && ![408, 409, 425, 429].includes(status),
		};
	} catch (error) {				// no connection, no answer in time, no HTTP
		const { message } = signal.reason ?? error;
		return { error: { message }, retryIn: signal.reason === STOPPED ? '0' : null, final: false };
	}
}

async function deliver(message, { abort }) {
	const { id, token } = message;
	const timeout = setTimeout(() => abort.abort(TIMED_OUT), TIMEOUT * 1000);
	let beat = Promise.resolve();
	const heartbeat = setInterval(() => {
		beat = beat.then(async () => {
			if (!await ours('SELECT idem_extend($1, $2, $3)', [id, token, `${LEASE} s`]))
				abort.abort(TAKEN_OVER);
		});
	}, LEASE * 1000 / 3);

	const failure = await post(message, abort.signal);
	clearTimeout(timeout);
	clearInterval(heartbeat);
	await beat;
	if (!failure)
		await ours('SELECT idem_ack($1, $2)', [id, token]);
	else if (abort.signal.reason !== TAKEN_OVER)
		await ours('SELECT idem_nack($1, $2, $3, $4, $5)',
			[id, token, failure.error, failure.retryIn, failure.final]);
}

function giveBack() {
	for (const { abort } of busy)
		abort.abort(STOPPED);
	setTimeout(() => process.exit(1), 5000).unref();	// no database, either
}

// A second signal allows no more time.
const stopped = new Promise(resolve => {
	function stop() {
		setTimeout(giveBack, stopping ? 0 : GRACE * 1000).unref();
		stopping = true;
		resolve();
		pool.query('SELECT pg_cancel_backend($1)', [takerPid]).catch(() => {});
	}
	process.on('SIGTERM', stop);
	process.on('SIGINT', stop);
});

async function main() {
	while (!stopping) {
		if (busy.size >= SLOTS) {
			await Promise.race([stopped, ...Array.from(busy, each => each.done)]);
			continue;
		}
		const messages = await sql(taker,
			`SELECT id, token, payload::text, downstream_key
			   FROM idem_dequeue($1, $2, lease => $3, wait => $4)`,
			[queue, SLOTS - busy.size, `${LEASE} s`, WAIT]);
		for (const message of messages) {
			const delivery = { abort: new AbortController() };
			busy.add(delivery);
			delivery.done = deliver(message, delivery).then(() => busy.delete(delivery));
		}
	}
	await Promise.all(Array.from(busy, each => each.done));
	await Promise.all([pool.end(), taker.end()]);
}

main();
