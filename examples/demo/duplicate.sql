-- (the other session: it does not want to wait, so it can answer "busy")
SELECT outcome, response FROM idem_claim('pay-2', request => '{"amount": 100}', wait => '0');
