-- What both services work on. That a payment is made once is the business of its key
-- alone: no constraint helps.

CREATE EXTENSION idempotency;

CREATE TABLE account (
	customer text PRIMARY KEY,
	balance bigint NOT NULL CHECK (balance >= 0)
);
INSERT INTO account VALUES ('ann', 1000000), ('bob', 1000000);

CREATE TABLE payment (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	customer text NOT NULL REFERENCES account,
	amount bigint NOT NULL,
	currency text NOT NULL,
	charge text,				-- at the card processor; NULL: from the account
	key text NOT NULL			-- of the request, for whoever has to look into it
);
