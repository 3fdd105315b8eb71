-- What can go wrong, at will: the amount says what. It happens once for each
-- restart of the sequence, which a rollback does not turn back.
CREATE SEQUENCE attempt;

CREATE FUNCTION stumble() RETURNS trigger LANGUAGE plpgsql AS
$$
BEGIN
	IF NEW.amount = 1001 AND nextval('attempt') = 1 THEN
		RAISE EXCEPTION 'conflict' USING ERRCODE = '40001';
	ELSIF NEW.amount = 1002 AND nextval('attempt') = 1 THEN
		RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01';
	ELSIF NEW.amount = 1003 AND nextval('attempt') = 1 THEN
		PERFORM pg_terminate_backend(pg_backend_pid());
	ELSIF NEW.amount = 1004 THEN
		-- until the test lets go
		PERFORM pg_advisory_xact_lock(1004);
	ELSIF NEW.amount = 1005 THEN
		RAISE EXCEPTION 'no retry helps' USING ERRCODE = '23514';
	END IF;
	RETURN NEW;
END
$$;

CREATE TRIGGER stumble BEFORE INSERT ON payment FOR EACH ROW EXECUTE FUNCTION stumble();
