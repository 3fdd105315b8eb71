-- the shop: no constraint keeps an order from being made twice
CREATE EXTENSION idempotency;
CREATE TABLE orders (id int GENERATED ALWAYS AS IDENTITY, key text, item text);
CREATE TABLE payment (order_id int, charge_id int);

-- the payment service: somebody else's, with a database of its own; who hands it
-- a key again gets the first charge again
CREATE DATABASE payments;
\connect payments
CREATE TABLE charge (id int GENERATED ALWAYS AS IDENTITY (START 501),
                     key uuid PRIMARY KEY, amount int, requests int DEFAULT 1);
CREATE FUNCTION charge(key uuid, amount int) RETURNS int LANGUAGE sql AS $$
  INSERT INTO charge AS c (key, amount) VALUES ($1, $2)
  ON CONFLICT ON CONSTRAINT charge_pkey DO UPDATE SET requests = c.requests + 1
  RETURNING id
$$;

-- the mail server: the same, by the id of the message
CREATE DATABASE mail;
\connect mail
CREATE TABLE message (id int GENERATED ALWAYS AS IDENTITY (START 9001),
                      message_id uuid PRIMARY KEY, body text, requests int DEFAULT 1);
CREATE FUNCTION send(message_id uuid, body text) RETURNS int LANGUAGE sql AS $$
  INSERT INTO message AS m (message_id, body) VALUES ($1, $2)
  ON CONFLICT ON CONSTRAINT message_pkey DO UPDATE SET requests = m.requests + 1
  RETURNING id
$$;
