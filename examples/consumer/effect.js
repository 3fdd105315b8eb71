// Works on the messages of a queue inside the database, exactly once.
//
//   node effect.js QUEUE
//
// The message is taken, its effect written and the message acknowledged in one
// transaction: all of it happens, or none. There is no lease to care for, and nothing
// to give back: whatever ends this program or its connection undoes it.
//
// An effect that fails is undone alone (the savepoint), and the failure is what commits:
// else nobody would count the attempts. The environment names the database.

'use strict';

const { setTimeout: sleep } = require('node:timers/promises');
const pg = require('pg');

let stopping = false;
for (const signal of ['SIGTERM', 'SIGINT'])
	process.on(signal, () => { stopping = true; });

// The connection is lost, or the server cannot do it now: all of it again.
const passes = error => !error.severity || /^(08|40|53|55|57)/.test(error.code);

function effect(db, payload) {
	return db.query('INSERT INTO invoice (n) VALUES ($1)', [payload.n]);
}

// On one message; false if there is none.
async function work(db, queue) {
	await db.query('BEGIN');
	const { rows: [message] } = await db.query('SELECT id, token, payload FROM idem_dequeue($1)', [queue]);
	if (message) {
		const { id, token, payload } = message;
		await db.query('SAVEPOINT effect');
		try {
			await effect(db, payload);
			await db.query('SELECT idem_ack($1, $2)', [id, token]);
		} catch (error) {
			if (error.severity && passes(error))
				throw error;
			await db.query('ROLLBACK TO SAVEPOINT effect');
			await db.query('SELECT idem_nack($1, $2, $3)', [id, token, { message: error.message }]);
		}
	}
	await db.query('COMMIT');
	return Boolean(message);
}

async function main(queue) {
	for (let attempt = 0; !stopping; attempt++) {
		const db = new pg.Client({ keepAlive: true });
		db.on('error', () => {});		// the statement that meets it says so
		try {
			await db.connect();
			while (!stopping) {
				if (!await work(db, queue))
					await db.query('CALL idem_await($1, $2)', [queue, '2 s']);
				attempt = 0;
			}
		} catch (error) {
			if (!passes(error))
				throw error;
			console.error(`database: ${error.message}`);
			await sleep(Math.random() * Math.min(5000, 100 * 2 ** attempt));
		} finally {
			db.end().catch(() => {});
		}
	}
}

main(process.argv[2]);
