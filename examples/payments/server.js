// A payment service that honours the Idempotency-Key header.
//
//   NODE_PATH=/usr/share/nodejs node server.js
//
//   POST /payments        {"amount": 950, "currency": "EUR"}: from the customer's account,
//                         all of it in the database
//   POST /card-payments   {"amount": 950, "currency": "EUR", "card": "…"}: by way of a card
//                         processor, which is not
//
// The environment names the database (PGHOST and the like) and the PROCESSOR (its URL), and
// may change PORT (0, the default, is any that is free; it is printed) and, in seconds, LEASE
// (how soon a repeat takes over from a service that died) and TIMEOUT (of a call of the
// processor; less than LEASE).

'use strict';

const { randomUUID } = require('node:crypto');
const http = require('node:http');
const { setTimeout: sleep } = require('node:timers/promises');
const express = require('express');
const pg = require('pg');

const { PORT = 0, PROCESSOR, LEASE = 30, TIMEOUT = 20 } = process.env;

// A connection that is lost says so by an event, too, which would end this process.
const pool = new pg.Pool({ max: 10, keepAlive: true });
pool.on('connect', client => client.on('error', () => {}));
pool.on('error', () => {});

//
// To be copied: requests under a key
//

// A handler that answers under the Idempotency-Key of the request.
//
//   check(body)                  what is wrong with the request, if anything
//   call(req, key)               the part outside the database, if there is one, with the key
//                                to be handed on. If it throws, it is tried again later; if the
//                                error is "final", never
//   work(db, req, key, called)   the part in the database; gives { status, body }
function idempotent({ check, call, work }) {
	return async (req, res, next) => {
		const key = keyOf(req.headers['idempotency-key']);
		if (!key)
			return send(res, problem(400, 'missing', 'Idempotency-Key is missing or malformed',
				'This operation needs the header Idempotency-Key: a string of 1 to 512 characters, ' +
				'new for each operation and the same for its retries.'));
		const wrong = check(req.body);
		if (wrong)					// not stored: the key is still free for a better request
			return send(res, problem(400, 'invalid', 'The request is invalid', wrong));

		// The key is the customer's own. With the endpoint in what is compared, the
		// same key at another endpoint is a mistake, and not another operation.
		const { method, baseUrl, path, body } = req;
		const request = JSON.stringify({ method, path: baseUrl + path, body });
		const claim = { key, scope: req.customer, request, holder: randomUUID() };
		try {
			send(res, await persist(() => call
				? underLease(claim, downstream => call(req, downstream),
					(db, called) => work(db, req, key, called))
				: inTransaction(claim, db => work(db, req, key))));
		} catch (error) {
			next(error);
		}
	};
}

// Claim, work and finish commit together, or nothing does.
function inTransaction({ key, scope, request }, work) {
	return transaction(async db => {
		const { rows: [claim] } = await db.query(
			`SELECT outcome, response FROM idem_claim($1, scope => $2, request => $3, wait => '0')`,
			[key, scope, request]);
		if (claim.outcome !== 'claimed')
			return answerTo(claim);
		return finish(db, { key, scope, token: null }, work);
	});
}

// The claim is committed before the call and outlives this process. When the lease has run
// out, a repeat takes over and calls again, with the same downstream key; whoever lost the
// lease can book nothing. The holder makes it possible to claim again after a lost answer.
async function underLease({ key, scope, request, holder }, call, work) {
	const { rows: [claim] } = await pool.query(
		`SELECT outcome, response, token::text, idem_derive($1, 'call', $2) AS downstream,
				ceil(extract(epoch FROM retry_after)) AS retry_after
		   FROM idem_claim($1, scope => $2, request => $3, wait => '0', lease => $4, holder => $5)`,
		[key, scope, request, `${LEASE} s`, holder]);
	if (claim.outcome !== 'claimed')
		return answerTo(claim);
	const { token, downstream } = claim;

	let called;
	try {
		called = await call(downstream);
	} catch (error) {
		console.error(`${downstream}: ${error.message}`);
		// No limit to the attempts: nobody knows whether it was done, until a call says so.
		const { rows: [failure] } = await pool.query(
			`SELECT outcome, response, ceil(extract(epoch FROM retry_after)) AS retry_after
			   FROM idem_fail($1, $2, scope => $3, token => $4, final => $5, max_attempts => 0)`,
			[key, problem(502, 'refused', 'The request was refused', error.message), scope, token,
				Boolean(error.final)]);
		return failure.outcome === 'failed' ? failure.response : answerTo(failure);
	}

	return transaction(async db => {
		await db.query('SELECT idem_guard($1, $2, $3)', [key, scope, token]);
		return finish(db, { key, scope, token }, db => work(db, called));
	});
}

// Of work that fails nothing is left but its answer. What is answered is what was stored,
// so that a repeat gets the same to the letter.
async function finish(db, { key, scope, token }, work) {
	await db.query('SAVEPOINT work');
	const answer = await work(db);
	if (answer.status >= 400)
		await db.query('ROLLBACK TO SAVEPOINT work');
	const { rows: [{ response }] } = await db.query(
		'SELECT idem_finish($1, $2, $3, $4) AS response', [key, answer, scope, token]);
	return response;
}

async function transaction(work) {
	const db = await pool.connect();
	let broken;
	try {
		await db.query('BEGIN');
		const result = await work(db);
		const { command } = await db.query('COMMIT');
		if (command !== 'COMMIT')	// somebody has swallowed an error
			throw new Error(`COMMIT was answered ${command}`);
		return result;
	} catch (error) {
		await db.query('ROLLBACK').catch(lost => { broken = lost; });
		throw error;
	} finally {
		db.release(broken);
	}
}

// All of it again, with the same key, if the connection was lost (perhaps with the answer to
// COMMIT), the server cannot do it now, or the lease is somebody else's.
async function persist(attempt) {
	for (let n = 1; ; n++) {
		try {
			return await attempt();
		} catch (error) {
			if (!passes(error))
				throw error;
			console.error(`database: ${error.message}`);
			if (n === 8)
				return later('The database is not available', 1);
		}
		await sleep(Math.random() * Math.min(1000, 20 * 2 ** n));
	}
}

function passes(error) {
	return error.severity ? /^(08|40|53|57P|ID003)/.test(error.code)
		: Boolean(error.syscall) || /connection|timeout/i.test(error.message);
}

// How others are answered who come with a key that was claimed before.
function answerTo({ outcome, response, retry_after: retryAfter }) {
	switch (outcome) {
	case 'replayed':
	case 'failed':
		return { ...response, replayed: true };
	case 'mismatch':
		return problem(422, 'reused', 'Idempotency-Key is already used',
			'The key was used before with another request. Use a new key for a new operation.');
	case 'in_progress':				// likely to be done soon, whatever the lease
		return problem(409, 'outstanding', 'A request with this Idempotency-Key is outstanding',
			'The first request is still being processed. Repeat it later, with the same key.',
			{ 'Retry-After': '1' });
	case 'retry_later':
		return later('The operation has failed for now', retryAfter);
	}
	throw new Error(`the outcome of the claim is ${outcome}`);
}

// The draft has a string in double quotes, which may have parameters. Many clients send it
// bare; it means the same.
function keyOf(header = '') {
	const [, quoted, bare] =
		/^ *(?:"((?:[ !#-[\]-~]|\\["\\])*)" *(?:;.*)?|([!#-+\--:<-~]+) *)$/.exec(header) ?? [];
	const key = quoted?.replace(/\\(.)/g, '$1') ?? bare;
	return key?.length <= 512 ? key : undefined;
}

// RFC 9457
function problem(status, type, title, detail, headers) {
	const url = `https://payments.example.com/problems#${type}`;
	return { status, body: { type: url, title, detail, status }, headers };
}

function later(title, seconds) {
	return problem(503, 'later', title, 'Repeat the request later, with the same key.',
		{ 'Retry-After': String(Math.max(1, Number(seconds))) });
}

function send(res, { status, body, headers, replayed }) {
	res.status(status).set(headers ?? {}).type(status < 400 ? 'json' : 'application/problem+json');
	if (replayed)
		res.set('Idempotency-Replayed', 'true');
	res.end(JSON.stringify(body));
}

//
// The service
//

const customers = new Map([['key-of-ann', 'ann'], ['key-of-bob', 'bob']]);

const app = express();
app.use((req, res, next) => {
	req.customer = customers.get(/^Bearer (.*)$/.exec(req.headers.authorization)?.[1]);
	if (req.customer)
		next();
	else
		send(res, problem(401, 'unknown', 'Who are you?', 'An API key is needed.',
			{ 'WWW-Authenticate': 'Bearer' }));
});
app.use(express.json());

// What is wrong with a payment. Members that nobody knows are refused, so that what is
// compared with that of a repeat is all there is.
function checkPayment(body, names = ['amount', 'currency']) {
	if (!names.every(name => Object.hasOwn(body, name)) || Object.keys(body).length !== names.length)
		return `The members are ${names.join(', ')}.`;
	if (!Number.isInteger(body.amount) || body.amount < 1 || body.amount > 1e9)
		return 'The amount is a number of cents, from 1 to 1000000000.';
	if (typeof body.currency !== 'string' || !/^[A-Z]{3}$/.test(body.currency))
		return 'The currency is a code of three letters.';
}

function checkCardPayment(body) {
	const wrong = checkPayment(body, ['amount', 'currency', 'card']);
	if (wrong)
		return wrong;
	if (typeof body.card !== 'string' || !/^[a-z0-9]{1,40}$/.test(body.card))
		return 'The card is a word.';
}

async function book(db, { customer, body: { amount, currency } }, key, charge) {
	const { rows: [{ id }] } = await db.query(
		`INSERT INTO payment (customer, amount, currency, charge, key)
		 VALUES ($1, $2, $3, $4, $5) RETURNING id`,
		[customer, amount, currency, charge, key]);
	return { status: 201, body: { payment: id, amount, currency } };
}

// Not by fetch: in Node 18 it may forget the signal that is to abort it, and never end.
function post(url, headers, body) {
	return new Promise((resolve, reject) => {
		const request = http.request(url, {
			method: 'POST',
			headers: { 'Content-Type': 'application/json', ...headers },
		}, response => {
			response.setEncoding('utf8');
			const status = response.statusCode;
			response.toArray().then(parts => resolve({ status, answer: parts.join('') }), reject);
		});
		const timeout = setTimeout(() => request.destroy(new Error('timed out')), TIMEOUT * 1000);
		request.on('error', reject).on('close', () => clearTimeout(timeout));
		request.end(JSON.stringify(body));
	});
}

function declined(detail) {
	return problem(402, 'declined', 'The payment was declined', detail);
}

app.post('/payments', idempotent({
	check: checkPayment,
	async work(db, req, key) {
		const answer = await book(db, req, key, null);
		const { rowCount } = await db.query(
			'UPDATE account SET balance = balance - $2 WHERE customer = $1 AND balance >= $2',
			[req.customer, req.body.amount]);
		return rowCount ? answer : declined('The balance is too low.');
	},
}));

app.post('/card-payments', idempotent({
	check: checkCardPayment,
	async call({ body }, key) {
		const { status, answer } = await post(`${PROCESSOR}/charges`,
			{ 'Idempotency-Key': `"${key}"` }, body);
		if (status !== 201 && status !== 402)
			throw Object.assign(new Error(`the processor answers ${status}`),
				{ final: status >= 400 && status < 500 && ![408, 409, 425, 429].includes(status) });
		return JSON.parse(answer);
	},
	async work(db, req, key, { charge, reason }) {
		return charge ? book(db, req, key, charge) : declined(reason);
	},
}));

// Express knows it by its four parameters.
app.use((error, req, res, next) => {
	const status = error.status ?? 500;		// 400 and the like: the body cannot be read
	if (status >= 500)
		console.error(error);
	send(res, status < 500 ? problem(status, 'invalid', 'The request is invalid', error.message)
		: problem(500, 'internal', 'Something went wrong', 'Repeat the request, with the same key.'));
});

const server = app.listen(PORT, '127.0.0.1', () => console.log(server.address().port));
