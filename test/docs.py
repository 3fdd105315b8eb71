#!/usr/bin/env python3
"""Runs the SQL of documents as a reader would, and compares what it prints.

    docs.py [--timeout SECONDS] FILE.md ...     these documents
    docs.py --prove                             does it notice what is wrong?

To be run against any server, by PGHOST and its like, as a superuser; the extension
has to be installed there, not created. Every document has a database of its own,
doc_NAME, which is created and dropped, as are the roles that the document creates;
so one run at a time in a server. The output is TAP: one line for each block, and why
it failed.

    ```sql                      runs in psql, in order, in the same session
    ``` directly after it       is what that prints. "…" stands for any text in a
                                line, a line "…" for any lines; with a "…" in it,
                                the widths of columns do not matter. LINE and
                                CONTEXT of errors need not be shown.
                                Without it, the block must run without an error.
    <!-- session b -->          before a block: in another session, by default a
    <!-- session b, waits -->   it is started, seen to wait for somebody, and left
                                alone: its output follows it directly, or later,
                                after <!-- session b, answers -->
    <!-- run                    like a block, but not shown to readers, as what it
                                prints may be; it ends with a line of its own, -->
    <!-- from 17 -->            before a block: not on older servers
    <!-- new database -->       everything begins anew

What looks like one of these and is none is an error, and nothing of the file runs;
but comments before blocks with another tag are somebody else's.
A session that a block has ended, as its output then says, begins anew at the next
block; "\\c" ends it and begins it anew, too.
"""

import argparse
import difflib
import os
import pathlib
import re
import select
import subprocess
import sys
import tempfile
import time
import uuid

ANY = '…'
FENCE = re.compile(r'(?P<indent>\s*(?:>\s?)*(?:(?:[-*+]|\d+[.)])\s+)*)'
                   r'(?P<fence>```+|~~~+)\s*(?P<tag>[^`]*?)\s*$')
SESSION = re.compile(r'session (\w+)(?:, (waits|answers))?')

# what psql does not take for the end of a statement, or the beginning of another
OPAQUE = re.compile(r"""--[^\n]* | /\*.*?\*/ | \b[eE]'(?:[^'\\]|''|\\.)*' | '(?:[^']|'')*' | "[^"]*"
                        | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$""", re.DOTALL | re.VERBOSE)

# errors of the server, and those of psql itself
ERROR = re.compile(r'(ERROR|FATAL|PANIC):  |(psql|error): |\\\w+: |invalid (command \\|variable name)'
                   r'|(no rows|more than one row) returned for \\|unterminated quoted string'
                   r'|unrecognized value |Did not find any |\S+: No such file|connection to server was lost')

# Transactions wait for locks; "extend" is the lock of a table that grows. The
# waits of the extension's own are of type Extension, by whatever name.
WAITS = """SELECT count(*) FROM pg_stat_activity
           WHERE datname = '{}' AND application_name = '{}' AND state = 'active'
           AND (wait_event_type = 'Lock' AND wait_event <> 'extend' OR wait_event_type = 'Extension');"""


class Wrong(Exception):
    """A document that does not keep to the convention: line, what is wrong."""


class Block:
    def __init__(self, line, text, seen, session='a', waits=False, since=0):
        self.line = line
        self.text = text
        self.seen = seen            # by readers
        self.session = session
        self.waits = waits
        self.since = since
        self.expected = None

    def words(self):
        for line in self.text.splitlines():
            if line.strip() and not line.lstrip().startswith('--'):
                return line.strip()[:60].replace('#', '')
        return 'nothing'


#
# Reading a document
#

class Document:
    """Its steps, in order: ('block', Block), ('answers', session), ('anew', None)."""

    def __init__(self, text):
        self.lines = text.split('\n')
        self.at = 0                 # lines that were read
        self.steps = []
        self.pending = {}           # what comments have said of the next block
        self.last = None            # the block whose output may come now
        self.waiting = {}           # session: its block that has been left alone
        self.blocks = 0

        while self.at < len(self.lines):
            line = self.lines[self.at]
            self.at += 1
            fence = FENCE.match(line)
            if fence:
                self.read_fence(fence)
            elif line.strip().startswith('<!--'):
                self.read_comment()
            elif '<!--' in re.sub('`[^`]*`', '', line):
                raise Wrong(self.at, 'a comment that is not on a line of its own')
            elif line.strip('> \t'):
                self.nothing_pending()
                self.last = None
        self.nothing_pending()
        meant = len(re.findall(r'^[\W\d]*(?:```+|~~~+)\s*sql', text, re.MULTILINE | re.IGNORECASE))
        if meant != self.blocks:
            raise Wrong(self.at, f'{meant} blocks seem to be sql, {self.blocks} are')

    def nothing_pending(self):
        if 'unknown' in self.pending:
            raise Wrong(self.pending['line'], f"an unknown comment: {self.pending['unknown']}")
        if self.pending:
            raise Wrong(self.pending['line'], 'a comment without a block of its kind after it')

    def read_comment(self):
        start, text = self.at, self.lines[self.at - 1].strip()
        while '-->' not in text:
            if self.at == len(self.lines):
                raise Wrong(start, 'a comment without an end')
            text += '\n' + self.lines[self.at]
            self.at += 1
        text, rest = text[len('<!--'):].split('-->', 1)
        if rest.strip():
            raise Wrong(self.at, 'something after the end of a comment')

        session = SESSION.fullmatch(text.strip())
        since = re.fullmatch(r'from (\d+)', text.strip())
        run = re.fullmatch(r'\s*run *\n(.*)', text, re.DOTALL)
        said = self.pending
        self.last = None
        if 'unknown' in said:
            self.nothing_pending()
        if run:
            self.add(Block(start, run.group(1), False), start)
        elif text.strip() == 'new database':
            self.nothing_pending()
            self.steps.append(('anew', None))
            self.waiting.clear()
        elif session and not {'session', 'answers'} & said.keys():
            if session.group(2) == 'answers':
                said.update(answers=session.group(1), line=start)
            else:
                said.update(session=session.group(1), waits=session.group(2) == 'waits', line=start)
        elif since and 'since' not in said:
            said.update(since=int(since.group(1)), line=start)
        else:
            self.nothing_pending()
            said.update(unknown=' '.join(text.split()), line=start)
            if '\n' in text:
                self.nothing_pending()

    def read_fence(self, fence):
        start, body = self.at, []
        quotes = fence['indent'].count('>')
        margin = len(re.sub(r'^(\s*>\s?)*', '', fence['indent']))
        end = re.compile(rf"[\s>]*{re.escape(fence['fence'][0])}{{{len(fence['fence'])},}}\s*$")
        while True:
            if self.at == len(self.lines):
                raise Wrong(start, 'a block without an end')
            line = self.lines[self.at]
            self.at += 1
            if end.match(line):
                break
            line = re.sub(rf'^(\s*>\s?){{0,{quotes}}}', '', line)
            body.append(re.sub(rf'^\s{{0,{margin}}}', '', line))

        tag = fence['tag']
        if 'unknown' in self.pending:
            if tag in ('', 'sql'):
                self.nothing_pending()
            self.pending.clear()        # it says something of code that is not ours
        if tag == 'sql':
            self.blocks += 1
            self.add(Block(start, '\n'.join(body), True), start)
        elif 'sql' in tag.lower():
            raise Wrong(start, f'a block tagged "{tag}": sql, or something else')
        elif tag == '' and 'answers' in self.pending:
            self.read_answer(start, self.pending.pop('answers'), body)
        elif tag == '' and self.last and not self.pending:
            if self.last.expected is not None:
                raise Wrong(start, 'a second output of one block')
            self.last.expected = body
        else:
            self.nothing_pending()
            self.last = None

    def read_answer(self, start, session, body):
        block = self.waiting.pop(session, None)
        if not block or block.expected is not None:
            raise Wrong(start, f'no answer is waited for in session {session}')
        block.expected = body
        self.steps.append(('answers', session))
        self.pending.pop('line')
        self.nothing_pending()

    def add(self, block, start):
        if 'answers' in self.pending:
            raise Wrong(start, 'a comment that is for output')
        self.pending.pop('line', None)
        for name, value in self.pending.items():
            setattr(block, name, value)
        self.pending.clear()
        self.last = block
        self.waiting.pop(block.session, None)
        if block.waits:
            self.waiting[block.session] = block
        self.steps.append(('block', block))

        # psql would add the next block to it
        bare = OPAQUE.sub(lambda found: ' ' if found.group()[:2] in ('--', '/*') else 'x', block.text)
        tail = bare[bare.rfind(';') + 1:].strip()
        if re.search(r"['\"]|\$\w*\$|/\*", bare):
            raise Wrong(start, 'a quote or comment without an end')
        if bare.count('(') != bare.count(')'):
            raise Wrong(start, 'parentheses that do not match')
        if not bare.strip():
            raise Wrong(start, 'nothing to run')
        if tail and '\\' not in tail.splitlines()[-1]:
            raise Wrong(start, 'a statement without an end')


#
# psql
#

class Ended(Exception):
    """Nothing more is to be had from a session: why."""


class Psql:
    def __init__(self, database, name, timeout, *options):
        env = dict(os.environ, PGAPPNAME=name, PGTZ='UTC', PGCLIENTENCODING='UTF8', LC_ALL='C',
                   PGOPTIONS=f'-c statement_timeout={timeout}s')
        self.name = name
        self.timeout = timeout * 1.25   # the statement's own is the better message
        self.got = b''
        self.ended = None
        self.waiting = None             # the block that has been left alone
        self.marker = None
        self.process = subprocess.Popen(
            ['psql', '-X', '-q', '-P', 'pager=off', '-d', database, *options], env=env, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.send('')
        self.answer()

    def send(self, text):
        self.marker = f'end of block {uuid.uuid4()}'
        try:
            self.process.stdin.write(f'{text}\n\\echo {self.marker}\n'.encode())
        except BrokenPipeError:
            pass                        # answer says so

    def look(self, seconds):
        """Reads what there is; true if that is all of it."""
        end = f'{self.marker}\n'.encode()
        if end not in self.got and select.select([self.process.stdout], [], [], seconds)[0]:
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            if not more:
                self.ended = self.ended or 'the connection is lost'
                return True
            self.got += more
        return end in self.got

    def answer(self):
        deadline = time.monotonic() + self.timeout
        while not self.look(max(deadline - time.monotonic(), 0)):
            if time.monotonic() > deadline:
                self.ended = f'no answer within {self.timeout:g} s'
                self.process.kill()
                break
        text, self.got = self.got.decode(errors='replace'), b''
        return text.replace(f'{self.marker}\n', '')

    def ask(self, text):
        self.send(text)
        text = self.answer()
        if self.ended or re.search(ERROR.pattern, text, re.MULTILINE):
            raise Ended(f'{text.strip()} {self.ended or ""}')
        return text.strip()

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


#
# Comparing
#

def loose(line):
    """A line of a table whose columns have other widths today."""
    return re.sub('-{2,}', '--', re.sub('  +', ' ', line)).strip()


def pattern(line):
    return '.*'.join(re.escape(part) for part in line.split(ANY))


def tidy(lines):
    return '\n'.join(line.rstrip() for line in lines).strip('\n').split('\n')


def difference(expected, printed):
    """A diff of what is expected and what was printed; nothing if they agree."""
    expected, printed = tidy(expected), tidy(printed)
    if expected == printed:
        return []
    if not any(ANY in line for line in expected):
        return list(difflib.unified_diff(expected, printed, 'expected', 'printed', lineterm=''))

    whole = ''.join('(?:.*\n)*?' if line.strip() == ANY else pattern(loose(line)) + '\n' for line in expected)
    if re.fullmatch(whole, ''.join(loose(line) + '\n' for line in printed)):
        return []
    # what agrees shall not be in the diff
    for i, line in enumerate(printed):
        printed[i] = next((e for e in expected if e.strip() != ANY and
                           re.fullmatch(pattern(loose(e)), loose(line))), line)
    return list(difflib.unified_diff(expected, printed, 'expected', 'printed', lineterm=''))


#
# Running
#

class Run:
    """All documents of a run, and the TAP of it."""

    def __init__(self, timeout, say=print):
        self.timeout = timeout
        self.say = say
        self.admin = Psql('postgres', 'docs', timeout, '-A', '-t')
        self.version = int(self.admin.ask('SHOW server_version_num;')) // 10000
        self.sessions = {}
        self.count = self.failed = 0
        self.file = self.database = None

    def report(self, line, words, problem=(), skip=''):
        self.count += 1
        self.failed += bool(problem)
        verdict = 'not ok' if problem else 'ok'
        self.say(f'{verdict} {self.count} - {self.file}:{line} {words}{skip and f" # SKIP {skip}"}')
        for text in problem:
            self.say(f'# {text}'.rstrip())
        sys.stdout.flush()

    def document(self, file):
        self.file = file
        try:
            document = Document(pathlib.Path(file).read_text(encoding='utf-8'))
        except Wrong as wrong:
            self.report(wrong.args[0], wrong.args[1], [wrong.args[1]])
            return
        except (OSError, UnicodeDecodeError) as error:
            self.report(0, 'cannot be read', [str(error)])
            return

        self.database = 'doc_' + re.sub(r'\W', '_', pathlib.Path(file).stem.lower())
        try:
            before = self.state()
            self.begin()
            try:
                for kind, what in document.steps:
                    if kind == 'block':
                        self.block(what)
                    elif kind == 'answers':
                        self.collect(what)
                    else:
                        self.end()
                        self.begin()
            finally:
                self.end()
                self.restore(before)
        except Ended as ended:
            self.report(0, 'server', str(ended).splitlines())

    def begin(self):
        self.admin.ask(f'DROP DATABASE IF EXISTS {self.database} WITH (FORCE);\n'
                       f'CREATE DATABASE {self.database};')

    def end(self):
        for name in self.sessions:
            self.collect(name)
        for psql in self.sessions.values():
            psql.close()
        self.sessions.clear()
        psql = Psql(self.database, 'docs', self.timeout)
        psql.ask("SELECT format('ROLLBACK PREPARED %L', gid) FROM pg_prepared_xacts"
                 ' WHERE database = current_database() \\gexec')
        psql.close()
        self.admin.ask(f'DROP DATABASE {self.database} WITH (FORCE);')

    # What a document leaves in the server would be there for the next one.

    def state(self):
        roles = self.admin.ask('SELECT quote_ident(rolname) FROM pg_roles;').splitlines()
        settings = self.admin.ask("SELECT format('%I = %L', name, setting) FROM pg_file_settings"
                                  " WHERE sourcefile LIKE '%/postgresql.auto.conf';").splitlines()
        return set(roles), set(settings)

    def restore(self, before):
        roles, settings = self.state()
        for role in roles - before[0]:
            self.admin.ask(f'DROP ROLE {role};')
        for setting in settings - before[1]:
            self.admin.ask(f'ALTER SYSTEM RESET {setting.split(" = ")[0]};')
        for setting in before[1] - settings:
            self.admin.ask(f'ALTER SYSTEM SET {setting};')
        if settings != before[1]:
            self.admin.ask('SELECT pg_reload_conf();')

    def block(self, block):
        if block.since > self.version:
            self.report(block.line, block.words(), skip=f'PostgreSQL {block.since}')
            return
        psql = self.sessions.get(block.session)
        if psql and psql.waiting:
            self.collect(block.session)
        if not psql or psql.ended:
            if psql:
                psql.close()
            psql = Psql(self.database, f'session {block.session}', self.timeout)
            self.sessions[block.session] = psql
        shown = any(line.startswith('CONTEXT:') for line in block.expected or ())
        setting = f"\\set SHOW_CONTEXT {'errors' if shown else 'never'}\n"
        if block.waits:
            self.start(psql, block, setting)
        else:
            psql.send(setting + block.text)
            self.judge(psql, block, psql.answer())

    def start(self, psql, block, setting):
        """Starts a block that is to wait, and returns when it does."""
        psql.send(setting + block.text)
        psql.waiting = block
        deadline = time.monotonic() + self.timeout
        while not psql.look(0.02):
            if self.admin.ask(WAITS.format(self.database, psql.name)) != '0':
                return
            if time.monotonic() > deadline:
                break
        psql.waiting = None
        self.judge(psql, block, psql.answer(), 'it was to wait, and did not')

    def collect(self, name):
        psql = self.sessions.get(name)
        if psql and psql.waiting:
            block, psql.waiting = psql.waiting, None
            self.judge(psql, block, psql.answer())

    def judge(self, psql, block, text, problem=None):
        printed = text.splitlines()
        if not any(line.startswith('LINE ') for line in block.expected or ()):
            printed = re.sub(r'^LINE \d+: .*\n *\^$\n', '', text, flags=re.MULTILINE).splitlines()
        problems = [problem] if problem else []
        if block.expected is not None:
            problems += difference(block.expected, printed)
            # an end of the session that is shown is meant
            if psql.ended and (problems or 'connection to server was lost' not in printed):
                problems.append(psql.ended)
        elif psql.ended or any(ERROR.match(line) for line in printed):
            problems += printed + ([psql.ended] if psql.ended else [])
        elif problem:
            problems += printed
        if block.seen or block.expected is not None or problems:
            self.report(block.line, block.words(), problems)


#
# Does it notice?
#

GOOD = """
<!-- run
CREATE ROLE doc_reader;
-->

```sql
CREATE TABLE note (id int, body text);          -- it isn't "shown", what this prints
INSERT INTO note VALUES (1, 'a;
b');
```

1. In a list

   ```sql
   SELECT id, random() AS token FROM note;
   ```
   ```
    id | token
   ----+-------
     1 | …
   (1 row)
   ```

> ```sql
> SELECT body FROM note WHERE id = 1 \gset
> SELECT :'body' = E'a;\nb' AS same, 1/0;
> SELECT length(:'body') AS length;
> ```
>
> ```
> ERROR:  division by zero
>  length
> --------
>       4
> (1 row)
> ```

```sql
BEGIN;
SELECT FROM note FOR UPDATE;
SELECT FROM nowhere;
```
```
…
(1 row)

ERROR:  relation "nowhere" does not exist
```
```sql
ROLLBACK;
BEGIN;
UPDATE note SET id = id + 1;
```

<!-- session b, waits -->
```sql
UPDATE note SET id = id + 1 RETURNING id;
```

Now it goes on:

```sql
COMMIT;
```

<!-- session b, answers -->
```
 id
----
  3
(1 row)
```
<!-- from 14 -->
<!-- session b -->
```sql
SELECT pg_terminate_backend(pg_backend_pid());
```
```
FATAL:  terminating connection due to administrator command
…
connection to server was lost
```
<!-- session b -->
```sql
SELECT count(*) FROM note;
```
```
 count
-------
     1
(1 row)
```
<!-- from 999 -->
```sql
SELECT FROM nowhere;
```
<!-- new database -->
```sql
CREATE TABLE note (id int);
```
<!-- of something else -->
```sh
make
```
"""

# what is wrong, what it takes the place of, and what is said of it
BAD = [
    ('another output', '     1\n(1 row)', '     2\n(1 row)', r'# -\s+2'),
    ('another output, beside an open end', '  1 | …', '  2 | …', r'# - +2 \| …'),
    ('another error', 'relation "nowhere"', 'relation "somewhere"', r'# -ERROR:  relation "somewhere"'),
    ('another output of a session that waited', '  3\n', '  2\n', r'# - +2'),
    ('a statement more', 'SELECT count(*)', 'SELECT 1 AS more; SELECT count(*)', r'# \+ more'),
    ('a statement less', '> SELECT length', '> -- SELECT length', r'# - length'),
    ('an error that is not shown', 'INSERT INTO note', 'INSERT INTO nte', r'# ERROR:  relation "nte"'),
    ('an error of psql', 'ROLLBACK;', 'ROLLBACK; SELECT 1 WHERE false \\gset', r'# no rows returned'),
    ('an error in what is not shown', 'CREATE ROLE', 'CREATE ROL', r'# ERROR:  syntax error'),
    ('no output', '(1 row)\n```\n<!-- from 999', '```\n<!-- from 999', r'# \+\(1 row\)'),
    ('a statement without an end', 'id = id + 1;', 'id = id + 1', 'a statement without an end'),
    ('a text without an end', "b');", 'b);', 'a quote or comment without an end'),
    ('parentheses', 'count(*)', 'count((*)', 'parentheses'),
    ('nothing to run', 'COMMIT;', '-- COMMIT', 'nothing to run'),
    ('another tag', '```sql\nCOMMIT', '```SQL\nCOMMIT', 'tagged "SQL"'),
    ('a tag with more to it', '```sql\nCOMMIT', '```sql run\nCOMMIT', 'tagged "sql run"'),
    ('a block inside another one', '```sql\nCOMMIT;\n```', '````text\n```sql\nCOMMIT;\n```\n````',
     'blocks seem to be sql'),
    ('a block without an end', 'make\n```\n', 'make\n', 'a block without an end'),
    ('an unknown comment', ' session b -->\n```sql\nSELECT count', ' sesion b -->\n```sql\nSELECT count',
     'an unknown comment: sesion b'),
    ('an unknown comment, of several lines', '<!-- run\n', '<!-- ran\n', 'an unknown comment: ran'),
    ('an unknown comment before output', '<!-- session b, answers', '<!-- sesion b, answers',
     'an unknown comment: sesion b, answers'),
    ('an unknown comment before text', 'Now it', '<!-- new databse -->\nNow it', 'an unknown comment: new databse'),
    ('an unknown comment after another one', '<!-- from 14 -->', '<!-- form 14 -->', 'an unknown comment: form 14'),
    ('an unknown comment at the end', '```sh\nmake\n```\n', '', 'an unknown comment: of something else'),
    ('a comment inside a line', 'Now it', 'Now <!-- run --> it', 'not on a line of its own'),
    ('a comment for no block', 'Now it', '<!-- session b -->\nNow it', 'a comment without a block'),
    ('an answer that nobody waits for', 'session b, waits', 'session b', 'no answer is waited for'),
    ('a second output', '<!-- from 999 -->\n', '```\n…\n```\n', 'a second output'),
    ('a block that does not wait', 'UPDATE note SET id = id + 1;', 'SELECT;', 'it was to wait, and did not'),
    ('a lost connection', 'COMMIT;', 'SELECT pg_terminate_backend(pg_backend_pid());',
     'connection to server was lost'),
    ('a session that ends', 'COMMIT;', '\\q', 'the connection is lost'),
    ('a block that hangs', 'ROLLBACK;', 'ROLLBACK; SELECT pg_sleep(99);',
     'canceling statement due to statement timeout'),
    ('psql, if it hangs', 'ROLLBACK;', '\\! sleep 5', 'no answer within'),
    ('a session that waits for ever', 'COMMIT;', 'SELECT 1;', 'canceling statement due to statement timeout'),
]


def prove():
    """What is said of a good document, and of bad ones."""
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / 'proof.md'
        for number, (what, old, new, said) in enumerate([('nothing', '', '', ''), *BAD], 1):
            lines = []
            if GOOD.count(old) != 1 and old:
                raise LookupError(f'{what}: "{old}" is not there, or not once')
            file.write_text(GOOD.replace(old, new) if old else GOOD, encoding='utf-8')
            run = Run(2 if 'timeout' in said or 'within' in said else 60, lines.append)
            run.document(str(file))
            run.admin.close()
            good = re.search(said, '\n'.join(lines)) and bool(run.failed) == bool(old) and run.count
            failed += not good
            print(f"{'ok' if good else 'not ok'} {number} - notices {what}")
            for line in [] if good else lines:
                print(f'# {line}')
            sys.stdout.flush()
    print(f'1..{1 + len(BAD)}')
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--timeout', type=int, default=60, metavar='SECONDS')
    parser.add_argument('--prove', action='store_true')
    parser.add_argument('files', nargs='*', metavar='FILE.md')
    arguments = parser.parse_args()
    if arguments.prove == bool(arguments.files):
        parser.error('documents, or --prove')
    os.environ.setdefault('PGUSER', 'postgres')
    if arguments.prove:
        return prove()
    run = Run(arguments.timeout)
    for file in arguments.files:
        run.document(file)
    print(f'1..{run.count}' if run.count else '1..0 # SKIP nothing to run')
    return 1 if run.failed else 0


if __name__ == '__main__':
    sys.exit(main())
