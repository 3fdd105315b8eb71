/* privileges ------------------------------------------------------------- */

/*
 * ALTER DEFAULT PRIVILEGES may have granted our tables to somebody.  The
 * functions are the only way in, so take that back.
 */
DO $$
DECLARE
	granted pg_catalog.record;
BEGIN
	FOR granted IN
		SELECT DISTINCT c.oid::pg_catalog.regclass AS relation, a.grantee
		  FROM pg_catalog.pg_class AS c,
			   LATERAL pg_catalog.aclexplode(c.relacl) AS a
		 WHERE c.oid OPERATOR(pg_catalog.=) ANY (ARRAY['@extschema@.idem_key',
								'@extschema@.idem_step',
								'@extschema@.idem_queue',
								'@extschema@.idem_message',
								'@extschema@.idem_message_id',
								'@extschema@.idem_dead_letter',
								'@extschema@.idem_breaker',
								'@extschema@.idem_secret']::pg_catalog.regclass[])
		   AND a.grantee OPERATOR(pg_catalog.<>) c.relowner
	LOOP
		EXECUTE pg_catalog.format('REVOKE ALL ON TABLE %s FROM %s',
			granted.relation,
			CASE WHEN granted.grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid THEN 'PUBLIC'
				ELSE granted.grantee::pg_catalog.regrole::pg_catalog.text END);
	END LOOP;
END
$$;
