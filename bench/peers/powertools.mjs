// Powertools for AWS Lambda, idempotency: makeIdempotent() around a function. It
// brings stores for DynamoDB and for Valkey or Redis only; the one for PostgreSQL
// below is ours, after the one for DynamoDB.

import assert from 'node:assert';
import pg from 'pg';

export const name = '@aws-lambda-powertools/idempotency';
export const notes = [
	'It ships stores for DynamoDB and for Valkey or Redis. The one for PostgreSQL is this benchmark\'s:',
	'INSERT … ON CONFLICT DO NOTHING, UPDATE, SELECT.',
	'More than ours: it takes the key from the event, and may keep responses in the process (not by default).',
	'Less: work and record do not commit together, who has lost his lease is not fenced off, and a rival',
	'cannot wait. The lease is the nearest of ours; a transaction promises more.',
];
export const cases = {
	'fresh key': { theirs: 'pay', ours: ['lease', 'claim'] },
	'repeat': { theirs: 'pay', ours: ['lease', 'claim'], repeat: true },
};

const RESPONSE = { id: 1234567, status: 'paid', amount: 4200 };

const sql = {
	put: `INSERT INTO record (id, status, expiry, in_progress_expiry, validation) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT DO NOTHING`,
	get: `SELECT * FROM record WHERE id = $1`,
	retake: `UPDATE record SET status = $2, expiry = $3, in_progress_expiry = $4, validation = $5, data = NULL
		WHERE id = $1 AND (expiry < $6 / 1000 OR status = 'INPROGRESS' AND in_progress_expiry < $6)`,
	update: `UPDATE record SET status = $2, expiry = $3, data = $4, validation = $5 WHERE id = $1`,
	remove: `DELETE FROM record WHERE id = $1`,
};

async function store(pool) {
	const { IdempotencyItemAlreadyExistsError, IdempotencyItemNotFoundError } = await import(name);
	const { BasePersistenceLayer, IdempotencyRecord } = await import(`${name}/persistence`);

	function ask(statement, ...values) {
		return pool.query({ name: statement, text: sql[statement], values });
	}

	return new class extends BasePersistenceLayer {
		async _putRecord(record) {
			const values = [record.idempotencyKey, record.getStatus(), record.expiryTimestamp,
				record.inProgressExpiryTimestamp, record.payloadHash];
			if ((await ask('put', ...values)).rowCount === 1)
				return;
			const found = await this._getRecord(record.idempotencyKey);
			const now = Date.now();
			const free = found.expiryTimestamp < now / 1000 ||
				found.status === 'INPROGRESS' && found.inProgressExpiryTimestamp < now;
			if (free && (await ask('retake', ...values, now)).rowCount === 1)
				return;
			throw new IdempotencyItemAlreadyExistsError(`there is ${record.idempotencyKey}`, found);
		}

		async _getRecord(id) {
			const { rows: [row] } = await ask('get', id);
			if (!row)
				throw new IdempotencyItemNotFoundError(`there is no ${id}`);
			return new IdempotencyRecord({
				idempotencyKey: row.id, status: row.status, expiryTimestamp: Number(row.expiry),
				inProgressExpiryTimestamp: Number(row.in_progress_expiry), responseData: row.data,
				payloadHash: row.validation,
			});
		}

		async _updateRecord(record) {
			await ask('update', record.idempotencyKey, record.getStatus(), record.expiryTimestamp,
				JSON.stringify(record.responseData), record.payloadHash);
		}

		async _deleteRecord(record) {
			await ask('remove', record.idempotencyKey);
		}
	}();
}

export async function start({ url, max }) {
	const { IdempotencyConfig, makeIdempotent } = await import(name);
	const pool = new pg.Pool({ connectionString: url, max });

	await pool.query(`CREATE TABLE IF NOT EXISTS record (id text PRIMARY KEY, status text NOT NULL,
		expiry bigint NOT NULL, in_progress_expiry bigint, data jsonb, validation text)`);
	const config = new IdempotencyConfig({ eventKeyJmesPath: 'id' });
	config.registerLambdaContext({ getRemainingTimeInMillis: () => 60000 });
	let calls = 0;
	const pay = makeIdempotent(async () => {
		calls++;
		return RESPONSE;
	}, { persistenceStore: await store(pool), config });
	const operations = {
		pay: async (key, repeated) => {
			const before = calls;
			assert.deepEqual(await pay({ id: key }), RESPONSE);
			assert(repeated ? calls === before : calls > before);
		},
	};
	return { operations, stop: () => pool.end() };
}
