// The extension's side: what an application would write, with pg and nothing else.

import assert from 'node:assert';
import pg from 'pg';

const RESPONSE = { id: 1234567, status: 'paid', amount: 4200 };
const STEP = { id: 1234567, status: 'done' };

// Prepared once a connection, by their names.
const sql = {
	lease: `SELECT outcome, response, token, attempt FROM idem_claim($1, lease => '1 min')`,
	claim: `SELECT outcome, response FROM idem_claim($1)`,
	step: `SELECT done, result FROM idem_step($1, $2, token => $3)`,
	stepFinish: `SELECT idem_step_finish($1, $2, $3::jsonb, token => $4) AS result`,
	finish: `SELECT idem_finish($1, $2::jsonb) AS response`,
	leaseFinish: `SELECT idem_finish($1, $2::jsonb, token => $3) AS response`,
	job: `INSERT INTO job (queue, data) VALUES ($1, $2) RETURNING id`,
	once: `SELECT outcome, response
		FROM idem_once($1, 'INSERT INTO job (queue, data) VALUES ($1, $2) RETURNING id',
			ARRAY[$2::text, $3::text])`,
};

export async function start({ url, max }) {
	const pool = new pg.Pool({ connectionString: url, max });

	async function ask(on, name, ...values) {
		return (await on.query({ name, text: sql[name], values })).rows[0];
	}

	async function transaction(work) {
		const client = await pool.connect();
		try {
			await client.query('BEGIN');
			const result = await work(client);
			await client.query('COMMIT');
			client.release();
			return result;
		} catch (error) {
			client.release(true);	// what it was doing is rolled back
			throw error;
		}
	}

	// "careful" asks for each step; otherwise only if there was an attempt before,
	// since the first one of a key finds none.
	function flow(steps, careful) {
		return async (key, repeated) => {
			const { outcome, response, token, attempt } = await ask(pool, 'lease', key);
			assert.equal(outcome, repeated ? 'replayed' : 'claimed');
			if (outcome === 'replayed')
				return assert.deepEqual(response, RESPONSE);
			for (let i = 1; i <= steps; i++) {
				const step = `step-${i}`;
				const { done } = careful || attempt > 1 ? await ask(pool, 'step', key, step, token) : {};
				if (!done)
					await ask(pool, 'stepFinish', key, step, JSON.stringify(STEP), token);
			}
			await ask(pool, 'leaseFinish', key, JSON.stringify(RESPONSE), token);
		};
	}

	async function claim(key, repeated) {
		await transaction(async client => {
			const { outcome, response } = await ask(client, 'claim', key);
			assert.equal(outcome, repeated ? 'replayed' : 'claimed');
			if (outcome === 'replayed')
				return assert.deepEqual(response, RESPONSE);
			await ask(client, 'finish', key, JSON.stringify(RESPONSE));
		});
	}

	async function job(key, repeated) {
		await transaction(async client => {
			const { outcome, response } = await ask(client, 'claim', key);
			assert.equal(outcome, repeated ? 'replayed' : 'claimed');
			if (outcome === 'replayed')
				return assert(response > 0);
			const { id } = await ask(client, 'job', 'mail', JSON.stringify(RESPONSE));
			await ask(client, 'finish', key, id);
		});
	}

	async function once(key, repeated) {
		const { outcome, response } = await ask(pool, 'once', key, 'mail', JSON.stringify(RESPONSE));
		assert.equal(outcome, repeated ? 'replayed' : 'claimed');
		assert(response > 0);
	}

	const operations = {
		lease: flow(0), 'flow-1': flow(1, true), 'flow-5': flow(5, true), 'flow-5-lean': flow(5, false),
		claim, job, once,
	};
	return { operations, stop: () => pool.end() };
}

// What the report calls them.
export const names = {
	lease: 'lease, finish', 'flow-1': 'lease, 1 step, finish', 'flow-5': 'lease, 5 steps, finish',
	'flow-5-lean': 'the same, idem_step on later attempts only',
	claim: 'transaction: claim, finish', job: 'transaction: claim, INSERT, finish',
	once: 'idem_once with the INSERT',
};
