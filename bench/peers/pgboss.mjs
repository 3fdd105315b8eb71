// pg-boss: a job queue; of its policies "exclusive" is the one that refuses a
// second job of a key until the first one has ended.

import assert from 'node:assert';

export const name = 'pg-boss';
export const notes = [
	'More than ours: it is a queue, with workers, retries, schedules. Ours makes the row that one would fetch.',
	'Less: the key (singletonKey, policy "exclusive") counts until the job has ended, then it makes another one;',
	'a repeat is answered null, without the job that there is.',
	'Only send() is measured; supervision and schedules are off, as for a process that only sends.',
];
export const cases = {
	'fresh key': { theirs: 'send', ours: ['once', 'job'] },
	'repeat': { theirs: 'send', ours: ['once', 'job'], repeat: true },
};

const DATA = { id: 1234567, status: 'paid', amount: 4200 };

export async function start({ url, max }) {
	const { PgBoss } = await import(name);
	const boss = new PgBoss({ connectionString: url, max, supervise: false, schedule: false });

	boss.on('error', error => { throw error; });
	await boss.start();
	if (!await boss.getQueue('mail'))
		await boss.createQueue('mail', { policy: 'exclusive' });
	const operations = {
		send: async (key, repeated) => {
			const id = await boss.send('mail', DATA, { singletonKey: key });
			assert.equal(id === null, repeated);
		},
	};
	return { operations, stop: () => boss.stop({ graceful: false }) };
}
