"""What there is to call, by the catalogs; and what it may raise, by the reference.

Nothing here knows a function by name: a new one is called as soon as it is a
member of the extension, and has to have a section in doc/reference.md.
"""

import pathlib
import re
from collections import namedtuple

REFERENCE = pathlib.Path(__file__).parents[2] / 'doc' / 'reference.md'

Argument = namedtuple('Argument', 'name type optional oid send')
Function = namedtuple('Function', 'name schema arguments returns retset errors procedure')

FUNCTIONS = """
    SELECT p.proname, p.pronamespace::pg_catalog.regnamespace::text,
           p.proargnames::text[], ARRAY(SELECT pg_catalog.format_type(t, NULL)
                                          FROM pg_catalog.unnest(p.proargtypes) AS t),
           p.proargtypes::oid[], ARRAY(SELECT a.typsend::pg_catalog.regproc::text
                                         FROM pg_catalog.unnest(p.proargtypes) WITH ORDINALITY AS t(oid, n)
                                         JOIN pg_catalog.pg_type AS a ON a.oid = t.oid ORDER BY t.n),
           p.pronargdefaults, pg_catalog.format_type(p.prorettype, NULL), p.proretset,
           p.prokind = 'p'
      FROM pg_catalog.pg_depend AS d
      JOIN pg_catalog.pg_extension AS e
        ON d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.refobjid = e.oid
      JOIN pg_catalog.pg_proc AS p
        ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid
     WHERE d.deptype = 'e' AND e.extname = 'idempotency'
     ORDER BY p.proname"""

RELATIONS = """
    SELECT c.oid::pg_catalog.regclass::text, c.relkind, c.relhasindex,
           -- one that is written again, if there is one
           (SELECT a.attname::text FROM pg_catalog.pg_attribute AS a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             ORDER BY a.atttypid <> 'timestamptz'::pg_catalog.regtype, a.attnum DESC LIMIT 1)
      FROM pg_catalog.pg_depend AS d
      JOIN pg_catalog.pg_extension AS e
        ON d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.refobjid = e.oid
      JOIN pg_catalog.pg_class AS c
        ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
     WHERE d.deptype = 'e' AND e.extname = 'idempotency' AND c.relkind IN ('r', 'v')
     ORDER BY c.relname"""

SETTINGS = """
    SELECT name, min_val, max_val FROM pg_catalog.pg_settings
     WHERE name LIKE 'idempotency.%' ORDER BY name"""

CODE = re.compile(r'\b(?=[A-Z]*[0-9])[0-9A-Z]{5}\b')


class Reference:
    """doc/reference.md: sections, their SQLSTATEs, and the words that arguments take."""

    def __init__(self, text):
        parts = re.split(r'^## (\w+)$', text, flags=re.MULTILINE)
        self.sections = dict(zip(parts[1::2], parts[2::2]))
        self.words = {}
        for row in re.findall(r'^\|.*\|$', text, flags=re.MULTILINE):
            cells = [cell.strip() for cell in row.strip('|').split('|')]
            for name in re.findall(r'`(\w+)`', cells[0]):
                self.words.setdefault(name, []).extend(re.findall(r'`(\w+)`', cells[1]))
        # a table of the values of one argument
        for name, rows in re.findall(r'^\| (\w+) \|.*\n\|[ |-]+\n((?:\| `\w+` \|.*\n)+)',
                                     text, flags=re.MULTILINE):
            self.words.setdefault(name, []).extend(re.findall(r'^\| `(\w+)`', rows, flags=re.MULTILINE))

    def errors(self, function, seen=()):
        """SQLSTATEs that a function may raise: those that "*Errors:*" names, and
        those of the functions that it refers to; "but 40001" takes one away."""
        section = self.sections.get(function)
        if section is None:             # described along with something else
            found = [name for name, text in self.sections.items() if f'`{function}()`' in text]
            if not found:
                raise LookupError(f'doc/reference.md has no section on {function}')
            section = self.sections[found[0]]
        match = re.search(r'^\*Errors[^*]*:\*(.*?)(?=\*\w+:\*|\n\n|\Z)', section, re.M | re.S)
        text = match.group(1) if match else ''
        codes = set()
        for other in re.findall(r'as (?:for )?`(\w+)`(?: and `(\w+)`)?', text):
            for name in filter(None, other):
                if name in self.sections and name not in (function, *seen):
                    codes |= self.errors(name, (*seen, function))
        codes -= set(re.findall(r'but (\w{5})\b', text))
        return frozenset(codes | set(CODE.findall(re.sub(r'but \w{5}\b', '', text))))


class Catalog:
    def __init__(self, cursor, reference):
        self.words = reference.words
        cursor.execute(FUNCTIONS)
        self.functions = []
        for name, schema, names, types, oids, sends, defaults, returns, retset, procedure in cursor:
            required = len(types) - defaults
            arguments = tuple(Argument(names[i] if names else '', types[i], i >= required, oids[i], sends[i])
                              for i in range(len(types)))
            self.functions.append(Function(name, schema, arguments, returns, retset,
                                           reference.errors(name), procedure))
        cursor.execute(RELATIONS)
        relations = cursor.fetchall()
        self.views = [name for name, kind, *_ in relations if kind == 'v']
        self.tables = [name for name, kind, *_ in relations if kind == 'r']
        self.indexed = [(name, column) for name, _, indexed, column in relations if indexed]
        cursor.execute(SETTINGS)
        self.settings = cursor.fetchall()
        # Those who hand out claims, or messages, come more often, since the others need one;
        # so do those who make messages, and those who need one, since they often have none.
        self.openers = [f for f in self.functions
                        if takes(f, 'takeover', 'command') or takes(f, 'lease') and f.retset]
        self.weights = [3 if f in self.openers or takes(f, 'payload', 'payloads') else 2 if takes(f, 'token', 'tokens', 'step', 'reopen') else 1
                        for f in self.functions]


def takes(function, *names):
    return any(argument.name in names for argument in function.arguments)
