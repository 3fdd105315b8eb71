"""Values to call functions with: SQL expressions, sensible or hostile ones.

Expressions are plain ASCII, and short whatever they stand for. With each comes
what it may itself raise, so that the function is not blamed for it.

Every response is to be recognised where it must not show, in messages and in
the log: it has CANARY in it, a word that no statement has.
"""

import re
from collections import namedtuple

Value = namedtuple('Value', 'sql errors', defaults=(frozenset(),))

CANARY = 'canary'
BIRD = "'can' || 'ary'"

TOKEN = '\x01{}/{}\x01'                 # to be replaced by the token last seen for key and scope
MESSAGE = {                             # the same for the message last taken
    'id': TOKEN.format('id', 'message'),
    'token': TOKEN.format('token', 'message'),
}


def quote(text):
    """A literal whatever the settings are."""
    return "E'%s'" % ''.join(
        c if c == '\x01' or ' ' <= c <= '~' and c not in "'\\" else
        "''" if c == "'" else '\\\\' if c == '\\' else
        '\\x%02x' % ord(c) if ord(c) < 0x80 else '\\U%08x' % ord(c) for c in text)


def value(sql, *errors):
    return Value(sql, frozenset(errors))


def draw(rng, argument, place):
    """A value for an argument; "place" is a Place, see below."""
    hostile = rng.random() < place.hostility
    name, kind = argument.name, argument.type
    if hostile and rng.random() < 0.15:
        return value('NULL')
    if kind.endswith('[]'):
        return array(rng, argument, place, hostile)
    if name.endswith('s') and name[:-1] in place.pools:
        name = name[:-1]                # "keys" are like a key
    if not hostile and name in place.pools:
        return value(quote(rng.choice(place.pools[name])))
    if name == 'command':
        return value(quote(rng.choice(place.commands)))
    if kind == 'bigint' and place.of_message and name in MESSAGE and (not hostile or rng.random() < 0.5):
        return value(MESSAGE[name])
    if kind == 'bigint' and name.startswith('token') and (not hostile or rng.random() < 0.5):
        return value(TOKEN.format(place.key, place.scope)) if rng.random() < 0.7 else value('NULL')
    if not hostile and place.words.get(name) and kind == 'text':
        return value(quote(rng.choice(place.words[name])))
    choices = (HOSTILE if hostile else SENSIBLE).get(kind)
    if choices is None:                 # a type that nobody has thought of
        return value(f"{quote(rng.choice(('', '0', 'x', '{}')))}::{kind}",
                     '22P02', '22007', '22003', '22023', '42704', '42883', '0A000')
    return rng.choice(choices)


class Place:
    """Where values are to go."""

    def __init__(self, key, scope, pools, words, commands, hostility, length, of_message=False):
        self.key = key
        self.scope = scope
        self.pools = pools              # name of argument -> values
        self.words = words              # the same, by the reference
        self.commands = commands
        self.hostility = hostility
        self.length = length            # of arrays: those of one call are to go together
        self.of_message = of_message    # ids and tokens are those of messages


def array(rng, argument, place, hostile):
    kind = argument.type
    element = kind[:-2]
    single = argument._replace(name=re.sub('s$', '', argument.name), type=element)
    if hostile and rng.random() < 0.7:
        one = draw(rng, single, place)
        template, *errors = rng.choice((
            ("'{}'::%(kind)s",),
            ('ARRAY[NULL]::%(kind)s',),
            ('ARRAY[ARRAY[%(one)s, NULL], ARRAY[NULL, %(one)s]]::%(kind)s',),
            ('pg_catalog.array_fill(%(one)s::%(element)s, ARRAY[3], ARRAY[-2])',),
            ('pg_catalog.array_fill(%(one)s::%(element)s, ARRAY[2, 2, 1])',),
            ('pg_catalog.array_fill(NULL::%(element)s, ARRAY[%(many)d])',),
            ('pg_catalog.array_fill(%(one)s::%(element)s, ARRAY[%(some)d])',),
            ("ARRAY(SELECT g::text::%(element)s FROM pg_catalog.generate_series(1, %(many)d) AS g)",
             '22P02', '42846', '22007'),
        ))
        return Value(template % {'kind': kind, 'element': element, 'one': one.sql,
                                 'some': rng.choice((1, 17, 70)),
                                 'many': rng.choice((20, 100, 300, 300, 1001, 2000, 100000))},
                     one.errors | frozenset(errors) | {'54000'})
    elements = [draw(rng, single, place) for _ in range(place.length)]
    return Value(f"ARRAY[{', '.join(e.sql for e in elements)}]::{kind}",
                 frozenset().union(*(e.errors for e in elements)))


def strings():
    texts = ['', ' ', '\t', '\n', "'", '"', '\\', '\\\\x', '%s%n', '$1', '{}', '{a,b}', 'NULL', '\x02\x7f',
             'a\u200bb', '\ufeff', '\u202eabc', 'e\u0301', '\u00e9', '\u00df', '\u3042\u30a2', '\U0001f600',
             '\U0010ffff', '"; DROP TABLE idem_key; --', '0', '-1', '1e5', 'rerun ', 'infinity']
    found = [value(quote(text)) for text in texts]
    for n in (1, 127, 128, 129, 511, 512, 513, 8192, 3000000):
        found.append(value(f"pg_catalog.repeat('x', {n})"))
    for letter, width in (('\u00e9', 2), ('\u3042', 3), ('\U0001f600', 4)):
        for n in (128, 512):
            found.append(value(f"pg_catalog.repeat({quote(letter)}, {n // width})"))
            found.append(value(f"pg_catalog.repeat({quote(letter)}, {n // width}) || 'xyz'"))
    return found


def documents():
    """For jsonb; each that is an object or a string has the bird in it."""
    bird = f"pg_catalog.jsonb_build_object('bird', {BIRD}, 'n', %s)"
    found = [value(bird % n) for n in ('0', '-0.0', '1.0', '1e10', "'\\x00'", 'NULL', "'{}'::jsonb",
                                       "'infinity'::timestamptz", "pg_catalog.repeat('x', 3000)")]
    found += [value(f"'{text}'::jsonb") for text in
              ('null', 'true', '0', '-0', '1', '1.0', '1.000', '1e100000', '1e-16000', '[]', '{}', '""', '[[]]',
               '{"": 1}', '{"a": 1, "a": 2}', '{"status": 404}', '{"status": 1e9}', '{"idem_http": 1}',
               '{"idem_http": 1, "body": {}, "status": 5, "headers": 5}', '" "')]
    found += [value(f"E'{text}'::jsonb", '22P02', '22P05', '22003') for text in
              ('{', '', 'nul', '"\\\\u0000"', '"\\\\ud800"', '"\\\\ud83d\\\\ude00"', '1e999999', '01', '[1,]')]
    found += [value(f"(pg_catalog.repeat('{a}', {n}) || '1' || pg_catalog.repeat('{b}', {n}))::jsonb", '54001')
              for a, b in (('[', ']'), ('{"a":', '}')) for n in (100, 2000, 4000, 6000, 8000, 100000)]
    found += [value(f"pg_catalog.to_jsonb({BIRD} || pg_catalog.repeat('x', {n}))")
              for n in (1000, 2000, 8000, 1000000, 8388600, 9000000)]
    found += [value(f"(SELECT pg_catalog.jsonb_agg({BIRD} || g) FROM pg_catalog.generate_series(1, {n}) AS g)")
              for n in (1000, 100000)]
    found += [value(f"(SELECT pg_catalog.jsonb_object_agg({BIRD} || g, g) FROM pg_catalog.generate_series(1, {n}) AS g)")
              for n in (30, 30000)]
    return found


def intervals():
    found = [value(f"'{text}'::interval", '22007', '22008', '22015') for text in
             ('0', '-1 microsecond', '1 microsecond', '999 microseconds', '-1 day', '1 month -30 days',
              '-1 month 31 days', '2147483647 months', '-2147483648 months', '2147483647 days',
              '178000000 years', '-178000000 years', '290000 years', '9223372036854775807 microseconds',
              '-9223372036854775808 microseconds', 'infinity', '-infinity', 'P1Y2M3DT4H5M6.7S', '1 century ago')]
    found += [value("'1 day'::interval OPERATOR(pg_catalog.*) 1e12", '22008'),
              value('pg_catalog.make_interval(secs => 1e15)', '22008', '22003'),
              value("pg_catalog.make_interval(months => 2147483647, days => -2147483648)", '22008')]
    return found


NULL = value('NULL')
OBJECT = value(f"pg_catalog.jsonb_build_object('bird', {BIRD})")

SENSIBLE = {
    'text': [value(quote(text)) for text in ('a', 'b', 'something')],
    'jsonb': [NULL, OBJECT, OBJECT, OBJECT, value("'1'::jsonb"), value(f"pg_catalog.to_jsonb({BIRD})")],
    'interval': [value(f"'{text}'::interval") for text in ('1 ms', '10 ms', '20 ms', '1 s', '1 hour', '1 month')]
                + [NULL],
    'boolean': [value('true'), value('false')],
    'integer': [value(str(n)) for n in (1, 2, 3, 10)],
    'bigint': [value(str(n)) for n in (1, 2, 3, 10)],
    'uuid': [value("'6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid"), NULL],
}
HOSTILE = {
    'text': strings(),
    'jsonb': documents(),
    'interval': intervals(),
    'boolean': [NULL, value('true'), value('false')],
    'integer': [value(f"'{n}'::integer") for n in (0, -1, 2147483647, -2147483648, 65536, 1000000)],
    'bigint': [value(f"'{n}'::bigint") for n in (0, -1, 42, 9223372036854775807, -9223372036854775808)],
    'uuid': [value("'00000000-0000-0000-0000-000000000000'::uuid"), NULL, value("'x'::uuid", '22P02')],
}
