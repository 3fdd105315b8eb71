-- What the extension's side works with: itself, and a table of jobs with what a
-- worker needs to fetch them.
CREATE EXTENSION idempotency;

CREATE TABLE job (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	queue text NOT NULL,
	priority int NOT NULL DEFAULT 0,
	run_at timestamptz NOT NULL DEFAULT now(),
	data jsonb
);
CREATE INDEX ON job (queue, priority, run_at);
