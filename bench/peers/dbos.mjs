// DBOS: workflows whose steps are recorded in its system database.

import assert from 'node:assert';

export const name = '@dbos-inc/dbos-sdk';
export const notes = [
	'More than ours: a process that starts again runs what it left by itself; queues, timers, messages.',
	'It keeps input, name and times of each step, too.',
	'The same: who has lost a workflow to another process cannot record any more steps.',
	'Less: no lease, so without its conductor nobody takes over before a process of the same name starts;',
	'a step\'s own writes do not commit with its result (unless one of its data sources runs it);',
	'a repeat with another input is not noticed.',
	'Defaults, no conductor. Steps write nothing of their own on either side; each is committed.',
];
export const cases = {
	'no steps': { theirs: 'flow0', ours: ['lease'] },
	'one step': { theirs: 'flow1', ours: ['flow-1'] },
	'five steps': { theirs: 'flow5', ours: ['flow-5', 'flow-5-lean'] },
	'repeat of five steps': { theirs: 'flow5', ours: ['flow-5'], repeat: true },
};

const RESPONSE = { id: 1234567, status: 'paid', amount: 4200 };

async function step() {
	return { id: 1234567, status: 'done' };
}

export async function start({ url }) {
	const { DBOS } = await import(name);

	DBOS.setConfig({ name: 'peers', systemDatabaseUrl: url, logLevel: 'error' });
	const operations = {};
	for (const steps of [0, 1, 5]) {
		const flow = DBOS.registerWorkflow(async () => {
			for (let i = 1; i <= steps; i++)
				await DBOS.runStep(step, { name: `step-${i}` });
			return RESPONSE;
		}, { name: `flow${steps}` });
		operations[`flow${steps}`] = async key => {
			const handle = await DBOS.startWorkflow(flow, { workflowID: key })();
			assert.deepEqual(await handle.getResult(), RESPONSE);
		};
	}
	await DBOS.launch();
	return { operations, stop: () => DBOS.shutdown() };
}
