-- What the documentation must say of every function and view, as "file|text":
-- the arguments in README's table, and with types and defaults in the reference.
-- Functions that a view or a function of ours calls need not be named.

WITH ours AS (
	SELECT classid, objid FROM pg_depend
	 WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
	   AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency')
), functions AS (
	SELECT p.* FROM ours JOIN pg_proc AS p ON p.oid = objid
	 WHERE classid = 'pg_proc'::regclass
	   AND NOT EXISTS (SELECT FROM pg_depend AS d
						WHERE (d.refclassid, d.refobjid) = ('pg_proc'::regclass, p.oid)
						  AND d.classid IN ('pg_rewrite'::regclass, 'pg_proc'::regclass))
), arguments AS (
	SELECT p.oid, n, proargnames[n] AS name,
		   CASE type WHEN 'int4'::regtype THEN 'int' ELSE format_type(type, NULL) END AS type,
		   COALESCE(' = ' || regexp_replace(pg_get_function_arg_default(p.oid, n::int), '::[a-z ]+(\[\])?$', ''), '') AS preset
	  FROM functions AS p, unnest(proargtypes) WITH ORDINALITY AS a(type, n)
)
SELECT format('README.md|| `%s(%s)`', proname, string_agg(name, ', ' ORDER BY n))
  FROM functions JOIN arguments USING (oid) GROUP BY proname
UNION ALL
SELECT format('doc/reference.md|%s(%s)', proname, string_agg(name || ' ' || type || preset, ', ' ORDER BY n))
  FROM functions JOIN arguments USING (oid) GROUP BY proname
UNION ALL
SELECT format('doc/reference.md|## %s', proname) FROM functions
UNION ALL
SELECT format(f, relname)
  FROM ours JOIN pg_class AS c ON c.oid = objid,
	   unnest(ARRAY['README.md|| `%s` (view)', 'doc/reference.md|## %s']) AS f
 WHERE classid = 'pg_class'::regclass AND relkind = 'v'
 ORDER BY 1;

-- Drivers send parameters without types: one signature for each name.

SELECT proname || ' has ' || count(*) || ' signatures'
  FROM pg_proc WHERE proname ~ '^idem_' GROUP BY proname HAVING count(*) > 1;
