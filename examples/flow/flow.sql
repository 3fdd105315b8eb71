-- claim: with a lease, which outlives this session
SELECT outcome, outcome = 'claimed' AS claimed, token, coalesce(response::text, '') AS response
  FROM idem_claim(:'key', lease => '5 min', request => '{"item": "book", "price": 30}') \gset
\echo => :outcome :response
\if :claimed

  -- order: a row of our own, which commits together with its step
  SELECT done, NOT done AS todo, result
    FROM idem_step(:'key', 'order', token => :token) \gset order_
  \echo => order done: :order_done
  \if :order_todo
    BEGIN;
    INSERT INTO orders (key, item) VALUES (:'key', 'book') RETURNING id AS result \gset order_
    SELECT idem_step_finish(:'key', 'order', :'order_result', token => :token);
    COMMIT;
  \endif

  -- charge: made elsewhere, whether we commit or not; so it is asked for under a
  -- key that is derived from ours and is the same in every run
  SELECT done, NOT done AS todo, result
    FROM idem_step(:'key', 'charge', token => :token) \gset charge_
  \echo => charge done: :charge_done
  \if :charge_todo
    SELECT format('SELECT charge(%L, 30)', idem_derive(:'key', 'charge')) AS request \gset
    \set charge_result `psql -XAt -d payments -c :'request'`
    BEGIN;
    INSERT INTO payment VALUES (:order_result, :charge_result);
    SELECT idem_step_finish(:'key', 'charge', :'charge_result', token => :token);
    COMMIT;
  \endif

  -- mail: in the same way
  SELECT done, NOT done AS todo, result
    FROM idem_step(:'key', 'mail', token => :token) \gset mail_
  \echo => mail done: :mail_done
  \if :mail_todo
    SELECT format('SELECT send(%L, %L)', idem_derive(:'key', 'mail'),
                  'charge ' || :charge_result || ' was made') AS request \gset
    \set mail_result `psql -XAt -d mail -c :'request'`
    SELECT idem_step_finish(:'key', 'mail', :'mail_result', token => :token);
  \endif

  -- finish: the response for every repeat
  SELECT idem_finish(:'key', token => :token, response => jsonb_build_object(
    'order', :order_result, 'charge', :charge_result, 'mail', :mail_result));
\endif
