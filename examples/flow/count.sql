-- what was done, and in which attempt
SELECT step, result, attempt FROM idem_steps(:'key');
SELECT id, key, item, charge_id FROM orders JOIN payment ON order_id = id;

-- elsewhere: the charge was asked for twice, and made once
\connect payments
SELECT * FROM charge;
\connect mail
SELECT * FROM message;
