-- what is left: a lease, the order with its step, and a charge that we know nothing of
SELECT state, attempt, lease_until > clock_timestamp() AS live FROM idem_lookup(:'key');
SELECT step, result, attempt FROM idem_steps(:'key');
SELECT count(*) AS payments FROM payment;
\connect payments
SELECT * FROM charge;
