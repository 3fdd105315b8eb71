"""What a client of a torture run does with circuit breakers, which live in shared
memory: what is recorded stays, whatever becomes of the transaction, until the server
crashes. So nothing of it goes into tables. Each answer is noted in the history, with
the life of the shared memory that gave it: idem_stats tells when that began.

    counted     never opens: every call that was recorded must have been counted
    shaky       opens soon, and not for long: then nobody may be allowed to call
"""

from operations import operation

LIFE = "(SELECT extract(epoch FROM stats_reset)::text FROM idem_stats)"


def begin(cursor):
    """Of a superuser, before the clients come."""
    cursor.execute("SELECT idem_breaker_configure('counted', 100, 1000000, window_length => '1 day');"
                   "SELECT idem_breaker_configure('shaky', 50, 5, '1 s', '100 ms', 2)")


def record(client, trans, name, success):
    client.note('recording', key=name)      # it may be counted, and the answer lost
    (state, life), = trans.query(f'SELECT idem_breaker_record(%s, %s), {LIFE}', name, success)
    client.note('recorded', key=name, detail=state, response={'life': life})


@operation(8)
def call_outside(client, plan):
    """Asks, calls, and tells how it went, before the transaction ends one way or another."""
    if not client.shared.preloaded:
        return
    with client.transaction() as trans:
        rows = trans.query(
            'SELECT extract(epoch FROM statement_timestamp())::float8, extract(epoch FROM clock_timestamp())::float8,'
            f' allowed, state, extract(epoch FROM retry_after)::float8, {LIFE}'
            " FROM idem_breaker_allow('shaky')")
        for begun, ended, allowed, state, retry_after, life in rows:
            client.note('allowed' if allowed else 'refused', key='shaky', detail=state, seconds=retry_after,
                        response={'from': begun, 'to': ended, 'life': life})
        if allowed and client.chance(0.9):
            record(client, trans, 'shaky', client.chance(0.5))
        with trans.savepoint(rollback=client.chance(0.3)):
            record(client, trans, 'counted', client.chance(0.5))
        if client.chance(0.2):
            trans.roll_back()
