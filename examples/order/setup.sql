-- The shop. No constraint keeps anything from being done twice.

CREATE EXTENSION idempotency;
CREATE ROLE shop LOGIN;

CREATE TABLE stock (item text PRIMARY KEY, price int, available int CHECK (available >= 0));

-- An order is open from the claim of its key to the answer. Such a row is committed with
-- the claim, so whoever looks for flows to resume looks here.
CREATE TABLE orders (id int GENERATED ALWAYS AS IDENTITY, key text NOT NULL, request jsonb NOT NULL,
					 state text NOT NULL DEFAULT 'open');
CREATE INDEX ON orders (key) WHERE state = 'open';

-- what the steps write
CREATE TABLE reservation (order_id int, item text, quantity int);
CREATE TABLE payment (order_id int, charge text, amount int);
CREATE TABLE shipment (order_id int, item text, quantity int);

GRANT SELECT, INSERT, UPDATE, DELETE ON stock, orders, reservation, payment, shipment TO shop;

-- Of ten calls or more within a minute half have failed, and nobody calls for ten seconds;
-- then one may try.
SELECT idem_breaker_configure('payments', minimum_calls => 10, open_for => '10 s',
							  half_open_probes => 1);
