SELECT count(*) AS payments, count(DISTINCT key) AS keys
  FROM payment WHERE key LIKE 'storm-%';
