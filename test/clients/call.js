// call.js FILE KEY AMOUNT: calls a program of doc/recipes.md as others are called.

'use strict';

const path = require('node:path');

const [file, key, amount] = process.argv.slice(2);
require(path.resolve(file)).pay(key, Number(amount)).then(({ outcome, response }) => {
	console.log(outcome, response === null ? '' : JSON.stringify(response));
	process.exit();			// pools would keep it alive
}, error => {
	console.error(error);
	process.exit(1);
});
