-- The books that events are entered into, and the rules of the queue between the
-- receiver and the workers.

CREATE EXTENSION idempotency;

CREATE TABLE currency (code text PRIMARY KEY);
INSERT INTO currency VALUES ('EUR'), ('USD');

-- That an event is booked once is not for a constraint to see to: it follows from the
-- queue. A unique (source, event) would do no harm, but hide what the test looks for.
CREATE TABLE ledger (
	entry bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	source text NOT NULL,
	event text NOT NULL,
	customer text NOT NULL,
	amount numeric(14, 2) NOT NULL,
	currency text NOT NULL REFERENCES currency,
	message bigint NOT NULL,
	booked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Quick, for the test. For a service that others call: max_attempts => 15,
-- backoff_base => '10 s', backoff_cap => '2 h', jitter => 'equal'.
SELECT idem_configure_queue('webhooks', max_attempts => 3, backoff_base => '100 ms',
							backoff_cap => '200 ms', jitter => 'none');
