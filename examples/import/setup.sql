-- Payments, as they come from a bank, and the rows of its files that are none.

CREATE EXTENSION idempotency;

-- That a payment is there once is not for a constraint to see to: it follows from the
-- claims. A unique (account, reference) would do no harm, but hide what the test looks for.
CREATE TABLE payment (
	account text NOT NULL,
	reference text NOT NULL,
	booked_on date NOT NULL,
	amount numeric(12, 2) NOT NULL,
	purpose text NOT NULL
);

-- What chunks.py imports. Rows may be equal.
CREATE TABLE reading (
	sensor text NOT NULL,
	at timestamptz NOT NULL,
	value numeric NOT NULL
);

-- A line of a file, as it was when that was last imported. If a row has several lines, the
-- last of them.
CREATE TABLE reject (
	file text,
	line int,
	reason text NOT NULL,
	content text NOT NULL,
	rejected_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (file, line)
);
