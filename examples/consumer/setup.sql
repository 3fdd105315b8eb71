-- Orders, in transactions of ten. Each order is to be delivered to an outside system,
-- and to get an invoice in this database; every fourth transaction is rolled back.

CREATE EXTENSION idempotency;

CREATE TABLE orders (n int PRIMARY KEY, kind text);
CREATE TABLE invoice (n int, CONSTRAINT billable CHECK (n % 40 <> 8));

SELECT idem_configure_queue('deliveries', max_attempts => 20,
							backoff_base => '50 ms', backoff_cap => '200 ms');
SELECT idem_configure_queue('invoices', max_attempts => 3,
							backoff_base => '50 ms', backoff_cap => '200 ms');

-- What befalls an order at the receiver, see receiver.py.
CREATE FUNCTION kind_of(n int) RETURNS text IMMUTABLE
RETURN CASE n % 40
	WHEN 4 THEN 'failing' WHEN 8 THEN 'refused' WHEN 12 THEN 'busy'
	WHEN 16 THEN 'late' WHEN 20 THEN 'hanging' WHEN 24 THEN 'slow' ELSE 'ok' END;

CREATE PROCEDURE produce() LANGUAGE plpgsql AS $$
DECLARE
	payload jsonb;
BEGIN
	FOR transaction IN 0..39 LOOP
		FOR n IN transaction * 10 + 1 .. transaction * 10 + 10 LOOP
			payload := jsonb_build_object('n', n, 'kind', kind_of(n));
			INSERT INTO orders VALUES (n, kind_of(n));
			PERFORM idem_enqueue('deliveries', payload, key => 'order ' || n);
			PERFORM idem_enqueue('invoices', payload, key => 'order ' || n);
		END LOOP;
		IF transaction % 4 = 3 THEN
			ROLLBACK;
		ELSE
			COMMIT;
		END IF;
	END LOOP;
END $$;

-- The receiver's log.
CREATE TABLE request (at float8, client text, n int, kind text, answer int, effect int);
