// PgQ: events in batches. It knows no keys, so this is what producing costs.

import assert from 'node:assert';
import pg from 'pg';

export const name = 'PgQ';
export const notes = [
	'It promises nothing about duplicates: insert_event writes an event each time.',
	'Shown for what the INSERT of a queue costs without a key.',
	'More than ours: every consumer gets every event, in batches, and old ones go without a DELETE.',
	'No ticker runs here.',
];
export const cases = {
	'an event, no key': { theirs: 'insert', ours: ['once'] },
};

const DATA = JSON.stringify({ id: 1234567, status: 'paid', amount: 4200 });

export async function start({ url, max }) {
	const pool = new pg.Pool({ connectionString: url, max });

	await pool.query(`CREATE EXTENSION IF NOT EXISTS pgq`);
	await pool.query(`SELECT pgq.create_queue('mail')`);
	const operations = {
		insert: async () => {
			const { rows: [{ id }] } = await pool.query({
				name: 'insert', text: `SELECT pgq.insert_event('mail', 'paid', $1) AS id`, values: [DATA],
			});
			assert(id > 0);
		},
	};
	return { operations, stop: () => pool.end() };
}
