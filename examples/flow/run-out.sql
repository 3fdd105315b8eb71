-- nobody shall wait five minutes here: as superuser, we set the end of the lease back
UPDATE idem_key SET lease_until = clock_timestamp() WHERE key = :'key';
