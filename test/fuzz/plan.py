"""What a session does: episodes, each drawn from a seed of its own and from nothing
else, so that one can be repeated by itself.

An episode is a transaction, or a few statements outside of one, as some role and
under some settings. It is a list of steps; tokens are the only thing that is filled
in later.
"""

import random
from dataclasses import dataclass

from catalog import takes
from hostile import COMMANDS, REQUEST, SETTINGS, STATEMENTS, UNSURE
from values import BIRD, NULL, TOKEN, Place, Value, draw, quote

# What PostgreSQL itself may answer to any call, and why that is no fault of ours.
ANYWHERE = {
    '22021': 'a character that one of the encodings does not have',
    '22P05': 'the same',
    '25P02': 'the transaction has failed before',
    '25P03': 'idle_in_transaction_session_timeout',
    '40P01': 'deadlock',
    '42501': 'guest, who may not use the schema',
    '53200': 'lock table full: the transactions hold many keys on a small one',
    '53400': 'temp_file_limit',
    '54001': 'stack depth: deep jsonb, or a call from deep down',
    '55P03': 'lock_timeout',
    '57014': 'statement_timeout, or cancelled',
    '57P01': 'terminated',
}
# Queues, few of each kind: those who enqueue and those who dequeue shall meet.
QUEUES = {
    'queue': ['mail', 'mail', 'ship'],
    'source': ['bank'],
    'message_id': ['evt-1', 'evt-2'],
    'message_group': ['account-1', 'account-2'],
    'owner': ['alice'],
    'shared_with': ['bob', 'watcher'],
}
# Of what follows a BEGIN or a SAVEPOINT that has failed.
ASTRAY = frozenset({'25P01', '3B001'})
# Of what is done with things that may not be there.
NO_CURSOR = ('24000', '34000', '55000')
NO_TABLE = ('25006', '3F000', '42710', '42P07', '55006')
# Of set-returning functions, and of those that return void, in places that are not for them.
ELSEWHERE = ('0A000', '42703', '42804', '42846', '42P16')
# While the extension is dropped and created by others.
UNSETTLED = {
    '3F000': 'its schema is gone',
    '42704': 'the extension is gone',
    '42883': 'the function is gone',
    '42P01': 'the view is gone',
}


@dataclass
class Step:
    sql: str
    function: object = None             # what it calls
    errors: frozenset = frozenset()     # what it may raise beside what the function may
    anything: bool = False              # it runs what may raise anything
    rescue: bool = False                # is run though the transaction has failed
    undo: bool = False                  # is run only then
    key: str = ''                       # what its token, if there is one, is for
    scope: str = ''
    must_fail: bool = False
    copy: bool = False                  # COPY TO STDOUT
    wire: str = ''                      # extended or fast_path: sql makes the parameters
    call: object = None                 # and this is what they are for
    sure: bool = False                  # cannot succeed unless the function does


@dataclass
class Call:
    function: object
    sql: str
    errors: frozenset
    anything: bool
    place: object
    values: list                        # (argument, expression)

    def parameterised(self):
        """The same as a query with parameters, all of them named."""
        arguments = ', '.join(f'{argument.name} => ${i}'
                              for i, (argument, _) in enumerate(self.values, start=1))
        return f'SELECT * FROM {self.function.schema}.{self.function.name}({arguments}) AS x'


class Planner:
    def __init__(self, catalog, session, unsettled):
        self.catalog = catalog
        self.session = session
        self.unsettled = unsettled      # the extension may be dropped
        self.rng = None
        self.number = 0

    def episode(self, seed):
        rng = self.rng = random.Random(seed)
        self.number = 0
        self.scope = rng.choice(('', '', '', 's', 'tenant'))
        # the few that have been used before, or some that are new
        life = f'{rng.random()}-' if rng.random() < 0.3 else ''
        own = [f'{self.session}-{life}{i}' for i in range(4)]
        shared = ['shared-1', 'shared-2']
        self.key = rng.choice(own if rng.random() < 0.65 else shared)
        self.keys = own + shared
        self.batch = [self.key] + rng.sample([k for k in own if k != self.key], rng.randint(0, 3))
        self.wild = rng.random() < 0.35
        self.superuser = rng.random() < 0.15
        self.serializable = False
        self.careful = not self.wild and rng.random() < 0.5
        steps = self.setting_out()
        if rng.random() < 0.3:
            for _ in range(rng.randint(1, 5)):
                steps += self.work(block=False)
        elif self.careful:
            steps += self.careful_transaction()
        else:
            steps += self.transaction()
        if rng.random() < 0.05:
            steps.append(Step('DISCARD ALL', rescue=True, errors=frozenset({'25001'})))
        return steps

    #
    # Who, and how
    #

    def setting_out(self):
        rng = self.rng
        steps = []
        if rng.random() < 0.5:
            steps.append(Step(f'SET statement_timeout = {rng.choice((1, 2, 3, 5, 20, 100, 1000, 5000))}'))
        if rng.random() < 0.2:
            steps.append(Step(f'SET lock_timeout = {rng.choice((1, 2, 5, 50))}'))
        if rng.random() < 0.5:
            for name, choices in REQUEST.items():
                steps.append(Step(f'SET {name} = {quote(rng.choice(choices).replace("KEY", self.key))}'))
        if rng.random() < 0.005:        # slow
            steps.append(Step('SET debug_discard_caches = 1', errors=frozenset({'42704', '22023'})))
        while rng.random() < (0.6 if self.wild else 0.15):
            steps.append(self.setting('SET'))
        if not self.superuser:
            role = rng.choice(('alice',) * 6 + ('bob', 'bob', 'watcher', 'guest'))
            how = rng.choice(('SET ROLE', 'SET SESSION AUTHORIZATION', 'SET SESSION AUTHORIZATION'))
            steps.append(Step(f'{how} {role}'))
        return steps

    def setting(self, how):
        """Before the role is set, a superuser's rights may be needed."""
        rng = self.rng
        name, low, high = rng.choice(self.catalog.settings)
        own = f"{name} = {quote(rng.choice((low, high, '1', '100', '1000')))}"
        change = rng.choice((own, own, rng.choice(SETTINGS)))
        if 'isolation' in change:
            self.serializable = True
        return Step(f'{how} {change}', errors=frozenset(
            {'42704', '42501', '22023', '25001', '55P02', '0A000'}))

    #
    # Transactions
    #

    def transaction(self):
        rng = self.rng
        level = rng.choice(('', '', '', ' ISOLATION LEVEL REPEATABLE READ', ' ISOLATION LEVEL SERIALIZABLE'))
        self.serializable = self.serializable or 'SERIALIZABLE' in level
        mode = rng.choice(('',) * 12 + (' READ ONLY', ' READ WRITE'))
        if 'SERIALIZABLE' in level and 'ONLY' in mode and rng.random() < 0.3:
            mode += ' DEFERRABLE'
        steps = [Step(f'BEGIN{level}{mode}')]
        savepoints = 0
        if rng.random() < 0.5:          # most of what there is needs a claim
            steps += self.work(block=True, first=True)
        for _ in range(rng.randint(1, 9)):
            luck = rng.random()
            if luck < 0.12:
                savepoints += 1
                steps.append(Step(f'SAVEPOINT s{savepoints}', errors=ASTRAY))
            elif luck < 0.24 and savepoints:
                n = rng.randint(1, savepoints)
                if rng.random() < 0.6:
                    steps.append(Step(f'ROLLBACK TO s{n}', rescue=True, errors=ASTRAY))
                else:
                    steps.append(Step(f'RELEASE s{n}', errors=ASTRAY))
                    savepoints = n - 1
            elif luck < 0.28:
                steps.append(self.setting('SET LOCAL'))
            else:
                work = self.work(block=True)
                if savepoints and rng.random() < 0.3:
                    steps.append(Step(f'ROLLBACK TO s{savepoints}', rescue=True, errors=ASTRAY))
                steps += work
        return steps + self.end()

    def careful_transaction(self):
        """Goes on whatever fails, and so comes further."""
        steps = [Step('BEGIN')]
        for n in range(self.rng.randint(2, 9)):
            steps.append(Step('SAVEPOINT careful', errors=ASTRAY))
            steps += self.work(block=True, first=n == 0)
            steps.append(Step('ROLLBACK TO careful', undo=True, errors=ASTRAY))
        return steps + self.end()

    def end(self):
        rng = self.rng
        steps = []
        ends = frozenset({'ID005', '40001', '0A000', '42710', '42704', '55000', '25P02', '25P01'})
        end = rng.choice(('COMMIT',) * 9 + ('ROLLBACK', 'PREPARE', 'PREPARE', 'AND CHAIN'))
        gid = quote(f'fuzz {self.session} {rng.random()}')
        if end == 'PREPARE':
            steps.append(Step(f'PREPARE TRANSACTION {gid}', rescue=True, errors=ends))
            steps.append(Step(f"{rng.choice(('COMMIT', 'COMMIT', 'ROLLBACK'))} PREPARED {gid}", rescue=True,
                              errors=ends))
        elif end == 'AND CHAIN':
            steps.append(Step('COMMIT AND CHAIN', rescue=True, errors=ends))
            steps += self.work(block=True)
            steps.append(Step('COMMIT', rescue=True, errors=ends))
        else:
            steps.append(Step(end, rescue=True, errors=ends))
        return steps

    #
    # Calls
    #

    def work(self, block, first=False):
        rng = self.rng
        if first:
            return self.context(self.call(first=True), block)
        luck = rng.random()
        if luck < 0.04:
            view = rng.choice(self.catalog.views)
            return [Step(rng.choice((f'SELECT * FROM {view}', f'SELECT pg_catalog.count(*) FROM {view}',
                                     f'DELETE FROM {view}', f'SELECT * FROM {view} FOR UPDATE')),
                         errors=frozenset({'55000', '0A000', '42809', '25006'}))]
        if luck < 0.05 and not self.superuser:
            table = rng.choice(self.catalog.tables)
            return [Step(rng.choice((f'SELECT * FROM {table}', f'DELETE FROM {table}', f'TRUNCATE {table}',
                                     f'DROP TABLE {table}', f'LOCK TABLE {table}')),
                         errors=frozenset({'42501', '25P01', '25006'}), must_fail=True)]
        if luck < 0.08 and self.superuser:
            table, column = rng.choice(self.catalog.indexed)
            name = table.split('.')[-1]
            return [Step(rng.choice((
                f'CLUSTER {table} USING {name}_pkey', f'REINDEX TABLE {table}', f'ANALYZE {table}',
                f'TRUNCATE {", ".join(name for name, _ in self.catalog.indexed)}', f'LOCK TABLE {table}', f'VACUUM FULL {table}',
                f'CREATE INDEX IF NOT EXISTS {name}_fuzz ON {table} ({column})',
                f'DROP INDEX IF EXISTS idem.{name}_fuzz', f'ALTER TABLE {table} SET (fillfactor = 50)')),
                errors=frozenset({'25001', '25006', '25P01', '55006'}))]
        if luck < 0.06:
            return [Step('ALTER EXTENSION idempotency SET SCHEMA trap',
                         errors=frozenset({'42501', '0A000', '25006'}), must_fail=True)]
        return self.context(self.call(), block)

    def call(self, depth=0, first=False):
        rng = self.rng
        if first:
            function = rng.choice(self.catalog.openers)
        else:
            function = rng.choices(self.catalog.functions, self.catalog.weights)[0]
        if first or self.careful and rng.random() < 0.8:
            hostility = 0.0
        else:
            hostility = rng.choice((0.05, 0.3, 0.6) if self.wild else (0.0, 0.0, 0.05, 0.3))
        key = self.key if rng.random() < 0.85 else rng.choice(self.keys)
        scope = self.scope
        pools = {'key': [key], 'scope': [scope], 'step': ['charge', 'mail'], 'holder': ['me', 'you'],
                 'param': ['1', 'x'], **QUEUES}
        of_message = takes(function, 'id', 'ids') and takes(function, 'token', 'tokens')
        length = rng.choice((1, 1, 2, 3, 4)) if hostility else 1 if of_message else len(self.batch)
        commands = [self.command(depth)] if any(a.name == 'command' for a in function.arguments) else []
        place = Place(key, scope, pools, self.catalog.words, commands, hostility, length, of_message)
        arguments, values, errors, named = [], [], set(), False
        positional = rng.random() < 0.3
        for argument in function.arguments:
            if argument.optional:
                # without its scope the key of the episode is not found
                needed = argument.name in ('scope', 'token', 'tokens') and hostility < 0.2
                if positional and rng.random() < 0.3:
                    named = True
                if not needed and not positional and rng.random() < (0.4 if self.careful else 0.6):
                    named = True        # from here on, since this one is left out
                    continue
            if argument.name == 'keys' and not hostility:
                found = Value(f"ARRAY[{', '.join(map(quote, self.batch))}]::text[]")
            elif argument.name == 'tokens' and not hostility and not of_message and rng.random() < 0.5:
                found = NULL
            elif argument.name == 'tokens' and not hostility and not of_message:
                found = Value(f"ARRAY[{', '.join(TOKEN.format(k, scope) for k in self.batch)}]::bigint[]")
            elif argument.name == 'params' and commands and rng.random() < 0.9:
                # as many as the command has
                several = Place(key, scope, pools, {}, [], hostility / 4, commands[0].count('$'))
                found = draw(rng, argument, several)
            else:
                found = draw(rng, argument, place)
            errors |= found.errors
            values.append((argument, found.sql))
            arguments.append(f'{argument.name} => {found.sql}' if named and argument.name else found.sql)
        return Call(function, f"{function.schema}.{function.name}({', '.join(arguments)})",
                    frozenset(errors), bool(commands), place, values)

    def command(self, depth):
        """For functions that run one."""
        rng = self.rng
        luck = rng.random()
        if luck < 0.4:
            return rng.choice((
                f"SELECT {BIRD}", f"SELECT $1::text || {BIRD}", f"SELECT {BIRD} AS a, $1::text AS b",
                "INSERT INTO fuzz.sink (x) VALUES ($1) RETURNING id, x", f"VALUES ({BIRD}, 1), (NULL, 2)",
                f"SELECT {BIRD} || g FROM pg_catalog.generate_series(1, 5) AS g"))
        if luck < 0.55 and depth < 2:
            call = self.call(depth + 1)
            return rng.choice((f'SELECT * FROM {call.sql} AS x', f'SELECT {call.sql} AS x',
                               f'SELECT fuzz.caught({quote("SELECT " + call.sql)})',
                               f'SELECT fuzz.undone({quote("SELECT " + call.sql)})'))
        if luck < 0.6 and not self.superuser:
            return rng.choice(('DROP EXTENSION idempotency', 'DROP EXTENSION idempotency CASCADE',
                               'DROP SCHEMA fuzz CASCADE', 'ALTER TABLE idem.idem_key ADD x int'))
        if luck < 0.6 and self.unsettled:
            return 'DROP EXTENSION idempotency CASCADE'
        return rng.choice(COMMANDS)

    #
    # Where calls may stand
    #

    def context(self, call, block):
        """The steps of a call somewhere in SQL."""
        self.number += 1
        if call.function.procedure:
            return [Step(f'CALL {call.sql}', call.function, call.errors, key=call.place.key,
                         scope=call.place.scope, sure=True)]
        place = Context(self.rng, call, f't{self.number}', block)
        place.fill()
        if self.serializable:           # SSI
            for step in place.steps:
                step.errors |= {'40001'}
        return place.steps


class Context:
    def __init__(self, rng, call, name, block):
        self.rng = rng
        self.call = call
        self.name = name                # for what is created
        self.block = block              # in a transaction block
        self.query = f'SELECT * FROM {call.sql} AS x'
        self.steps = []

    def fill(self):
        several = (self.cursor, self.cursor_and_savepoints, self.prepared, self.parameterised, self.default,
                   self.check, self.trigger, self.index, self.read_only, self.extended, self.extended,
                   self.fast_path)
        places = [*STATEMENTS, *((1, method, '') for method in several)]
        _, place, errors = self.rng.choices(places, [weight for weight, _, _ in places])[0]
        if callable(place):
            place()
        else:
            depth = self.rng.choice((1, 3, 40, 200))
            self.add(place.format(call=self.call.sql, name=self.name, query=quote(self.query), depth=depth,
                                  some=self.rng.randint(0, min(depth, 9))),
                     *errors.split(), copy=place.startswith('COPY'), sure=not UNSURE.search(place))

    def add(self, sql, *errors, judged=True, **more):
        """One that is not judged does not call the function."""
        call = self.call
        self.steps.append(Step(sql, call.function if judged else None, frozenset(errors) | call.errors,
                               call.anything, key=call.place.key, scope=call.place.scope, **more))

    def table(self, columns):
        self.add(f'CREATE TEMP TABLE {self.name} ({columns})', *NO_TABLE, *ELSEWHERE)

    def use_table(self):
        self.add(f'INSERT INTO pg_temp.{self.name} (a) VALUES (1), (2)', '42P01', '23514')

    def drop_table(self):
        self.add(f'DROP TABLE IF EXISTS pg_temp.{self.name}', *NO_TABLE, judged=False)

    def cursor(self):
        rng = self.rng
        scroll, hold = rng.choice(('', ' SCROLL')), rng.choice(('', ' WITH HOLD'))
        self.add(f'DECLARE {self.name}{scroll} CURSOR{hold} FOR {self.query}', '25P01', '42P03')
        self.add(f'FETCH {self.name}', *NO_CURSOR)
        if rng.random() < 0.5:
            self.add(f'MOVE BACKWARD ALL IN {self.name}', *NO_CURSOR)
        if rng.random() < 0.5:
            self.add(f'CLOSE {self.name}', *NO_CURSOR, judged=False)

    def cursor_and_savepoints(self):
        self.add('SAVEPOINT here', *ASTRAY, judged=False)
        self.add(f'DECLARE {self.name} CURSOR FOR'
                 f' SELECT {self.call.sql} AS x FROM pg_catalog.generate_series(1, 3)', '25P01', '42P03')
        self.add(f'FETCH {self.name}', *NO_CURSOR)
        self.add('SAVEPOINT there', *ASTRAY, judged=False)
        self.add(f'FETCH {self.name}', *NO_CURSOR)
        self.add(f"ROLLBACK TO {self.rng.choice(('here', 'there'))}", *ASTRAY, judged=False, rescue=True)
        self.add(f'FETCH {self.name}', *NO_CURSOR)

    def prepared(self):
        self.add(f'PREPARE {self.name} AS {self.query}', '42P05')
        for _ in range(self.rng.choice((1, 2, 6))):
            self.add(f'EXECUTE {self.name}', '26000', '0A000')
        self.add('DEALLOCATE ALL', judged=False)

    def parameterised(self):
        types = ', '.join(argument.type for argument, _ in self.call.values)
        values = ', '.join(sql for _, sql in self.call.values)
        self.add(f"PREPARE {self.name}{f'({types})' * bool(types)} AS {self.call.parameterised()}", '42P05')
        for _ in range(self.rng.choice((1, 2, 6))):
            self.add(f"EXECUTE {self.name}{f'({values})' * bool(values)}", '26000', '0A000')
        self.add('DEALLOCATE ALL', judged=False)

    def default(self):
        self.table(f'a int, b text DEFAULT ({self.call.sql})::text')
        self.use_table()
        self.drop_table()

    def check(self):
        self.table(f'a int CHECK (({self.call.sql}) IS NOT NULL)')
        self.use_table()
        self.drop_table()

    def trigger(self):
        constraint, deferred = self.rng.choice((('', ''), ('CONSTRAINT', 'DEFERRABLE INITIALLY DEFERRED')))
        self.table('a int')
        self.add(f'CREATE {constraint} TRIGGER t AFTER INSERT ON pg_temp.{self.name} {deferred}'
                 f' FOR EACH ROW EXECUTE FUNCTION fuzz.trigger({quote(self.query)})',
                 '42P01', *NO_TABLE, judged=False)
        self.use_table()
        if deferred:
            self.add('SET CONSTRAINTS ALL IMMEDIATE')
        self.drop_table()

    def index(self):
        self.table('a int')
        self.use_table()
        self.add(f'CREATE INDEX ON pg_temp.{self.name} ((({self.call.sql})::text))',
                 '42P17', '42P01', '54000', *NO_TABLE, *ELSEWHERE)
        self.drop_table()

    def read_only(self):
        if not self.block:
            self.add('BEGIN READ ONLY', judged=False)
        self.add(self.query)
        if not self.block:
            self.add('COMMIT', 'ID005', judged=False, rescue=True)

    def extended(self):
        self.send('extended', self.call.values)

    def fast_path(self):
        given = dict(self.call.values)  # knows no defaults
        self.send('fast_path', [(argument, given.get(argument, 'NULL'))
                                for argument in self.call.function.arguments])

    def send(self, wire, values):
        parameters = (f"pg_catalog.encode({argument.send}(({sql})::{argument.type}), 'hex')"
                      for argument, sql in values)
        self.add(f"SELECT {', '.join(parameters)}", '0A000', wire=wire, call=self.call, sure=True)
