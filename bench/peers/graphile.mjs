// Graphile Worker: a job queue; of its modes "unsafe_dedupe" is the one that
// leaves the job of a key alone when it comes again.

import assert from 'node:assert';
import pg from 'pg';

export const name = 'graphile-worker';
export const notes = [
	'More than ours: it is a queue, with workers, retries, schedules, and add_job wakes the workers up.',
	'Ours makes the row that one would fetch.',
	'Less: the key (job_key, mode "unsafe_dedupe") counts until the job has ended, then it makes another one.',
	'The mode is not the default one, which rewrites the job; its own comments warn of it.',
	'add_job is called in SQL, from a pool of pg.',
];
export const cases = {
	'fresh key': { theirs: 'add', ours: ['once', 'job'] },
	'repeat': { theirs: 'add', ours: ['once', 'job'], repeat: true },
};

const DATA = JSON.stringify({ id: 1234567, status: 'paid', amount: 4200 });

export async function start({ url, max }) {
	const { Logger, runMigrations } = await import(name);
	const pool = new pg.Pool({ connectionString: url, max });

	await runMigrations({ pgPool: pool, logger: new Logger(() => () => {}) });
	const text = `SELECT id, revision
		FROM graphile_worker.add_job('mail', $1::json, job_key => $2, job_key_mode => 'unsafe_dedupe')`;
	const operations = {
		add: async (key, repeated) => {
			const { rows: [{ id, revision }] } = await pool.query({ name: 'add', text, values: [DATA, key] });
			assert(id > 0);
			assert.equal(revision > 0, repeated);
		},
	};
	return { operations, stop: () => pool.end() };
}
