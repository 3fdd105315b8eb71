// Medians of the figures, as a table on the output and as JSON in file 3, if that
// is a file.
//
//   node report.mjs FIGURES "SETTINGS"
//
// FIGURES has a line of JSON for each measurement of driver.mjs; "round" is which
// one it was. A ratio is that of one round, ours to theirs.

import { createRequire } from 'node:module';
import { cpus } from 'node:os';
import { fstatSync, ftruncateSync, readFileSync, writeSync } from 'node:fs';
import { names } from './ours.mjs';

const [figures, settings] = process.argv.slice(2);
const lines = readFileSync(figures, 'utf8').trim().split('\n').map(line => JSON.parse(line));
const COLUMNS = ['per_second', 'wal_bytes', 'backend_us', 'node_us', 'node_busy', 'round_trips'];

function version(name) {
	try {
		const path = createRequire(import.meta.url).resolve.paths('x')[0];
		return JSON.parse(readFileSync(`${path}/${name}/package.json`, 'utf8')).version;
	} catch {
		return process.env.PGQ_VERSION;
	}
}

function median(values) {
	const sorted = [...values].sort((a, b) => a - b);
	const half = sorted.length >> 1;
	return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

const round = (value, digits) => Number(value.toFixed(digits));

function medians(some) {
	return Object.fromEntries(COLUMNS.map(column => [column, round(median(some.map(line => line[column])), 3)]));
}

const rows = [];
const notes = {};
for (const key of new Set(lines.map(line => line.peer))) {
	const peer = await import(`./${key}.mjs`);
	const title = `${peer.name} ${version(peer.name)}`;
	notes[title] = peer.notes;
	for (const [what, { ours }] of Object.entries(peer.cases)) {
		for (const operation of ours) {
			const side = side => lines.filter(line => line.peer === key && line.case === what && line.side === side);
			const [one, other] = [side('theirs'), side(operation)];
			if (!other.length)
				continue;
			one.length = other.length;	// the last round may have been broken off
			const ratios = one.map((line, i) => other[i].per_second / line.per_second);
			rows.push({
				peer: title, case: what, beside: names[operation], rounds: one.length,
				theirs: medians(one), ours: medians(other),
				ratio: [median(ratios), Math.min(...ratios), Math.max(...ratios)].map(ratio => round(ratio, 2)),
			});
		}
	}
}

// A line that is a string stands by itself.
function table(lines) {
	const full = lines.filter(Array.isArray);
	const widths = full[0].map((_, i) => Math.max(...full.map(line => line[i].length)));
	const cell = (text, i) => i < 2 ? text.padEnd(widths[i]) : text.padStart(widths[i]);
	for (const line of lines)
		console.log(Array.isArray(line) ? line.map(cell).join(' | ') : line);
}

const pair = (row, column, show) => `${show(row.theirs[column])}, ${show(row.ours[column])}`;
console.log('Two figures are theirs and ours. CPU is for an operation; a client that is 100 % busy takes up a core.');
table([
	['theirs', 'ours', 'theirs /s', 'ours /s', 'ratio (min..max)', 'WAL B',
		'server CPU us', 'client CPU us', 'client busy %', 'round trips'],
	...rows.flatMap((row, i) => [...row.peer === rows[i - 1]?.peer ? [] : [row.peer], [
		`  ${row.case}`, row.beside, row.theirs.per_second.toFixed(0), row.ours.per_second.toFixed(0),
		`${row.ratio[0].toFixed(2)} (${row.ratio[1].toFixed(2)}..${row.ratio[2].toFixed(2)})`,
		pair(row, 'wal_bytes', x => x.toFixed(0)), pair(row, 'backend_us', x => x.toFixed(0)),
		pair(row, 'node_us', x => x.toFixed(0)), pair(row, 'node_busy', x => (100 * x).toFixed(0)),
		pair(row, 'round_trips', x => x.toFixed(1)),
	]]),
]);
for (const [title, texts] of Object.entries(notes))
	console.log(`\n${title}\n${texts.map(text => `  ${text}`).join('\n')}`);

if (fstatSync(3).isFile()) {
	ftruncateSync(3);
	writeSync(3, JSON.stringify({
		settings, cpu: cpus()[0].model, cpus: cpus().length, rows, notes,
	}, null, '\t') + '\n', 0);
}
