#!/usr/bin/python3
"""Rules of CONTRIBUTING.md that no other tool knows.

house.py source       headers of files, versions, comments on SQL functions,
                      errors and their messages
house.py rooms NAME...  a room calls only those further down, which come later
                      in NAME...; by what it includes, and by what its object
                      file asks the linker for

Prints what breaks a rule; the exit status is 1 if anything does.
"""
import re
import subprocess
import sys
from pathlib import Path

SRC = Path('src')
# not rooms: anybody may include them
SHARED = {'compat', 'errors'}

# below WARNING an error code says nothing
UNCODED = {'NOTICE', 'INFO', 'LOG', 'DEBUG1', 'DEBUG2', 'DEBUG3', 'DEBUG4', 'DEBUG5'}

STRING = r'"(?:[^"\\]|\\.)*"'
COMMENT = r'/\*.*?\*/'
PRIMARY = {'errmsg', 'errmsg_plural', 'errmsg_internal'}
SENTENCES = {'errdetail', 'errdetail_plural', 'errdetail_internal', 'errhint',
             'errhint_plural'}
CONTRACTION = re.compile(r"n't\b|\b(it|that|there|what|who)'s\b|'(re|ve|ll)\b", re.I)
VAGUE = re.compile(r'\b(unable|bad|illegal|unknown)\b', re.I)

findings = []


def find(path, text, position, what):
    line = text.count('\n', 0, position) + 1
    findings.append(f'{path}:{line}: {what}')


def without_comments(text):
    """The same text with blanks for comments, so that positions are kept."""
    def blank(match):
        if match[0].startswith('"'):
            return match[0]
        return re.sub(r'[^\n]', ' ', match[0])
    return re.sub(f'{STRING}|{COMMENT}', blank, text, flags=re.S)


def calls(text, names):
    """(name, position, arguments as written) of each call of one of names."""
    for match in re.finditer(rf'\b({names})\s*\(', text):
        depth, end = 1, match.end()
        while depth:
            token = re.compile(rf"{STRING}|'(?:[^'\\]|\\.)+'|[()]|[^\"'()]+").match(text, end)
            depth += {'(': 1, ')': -1}.get(token[0], 0)
            end = token.end()
        yield match[1], match.start(), text[match.end():end - 1]


def check_header(path, text):
    name = re.escape(path.name)
    if not re.match(rf'/\*-+\n \*\n \* {name}\n \*\t  \S.*?\n \*-+\n \*/\n', text, re.S):
        find(path, text, 0, 'no header comment that names the file and says what it is for')


def check_versions(path, text):
    if path.name != 'compat.h':
        for match in re.finditer(r'\b(PG_VERSION_NUM|PG_MAJORVERSION\w*|CATALOG_VERSION_NO)\b', text):
            find(path, text, match.start(), f'{match[1]} outside of compat.h')


def check_descriptions(path, text):
    for match in re.finditer(r'^Datum\n(idem_\w+)\(PG_FUNCTION_ARGS\)', text, re.M):
        before = text[:match.start()].rstrip()
        comment = before[before.rfind('/*'):]
        if not (comment.endswith('*/') and re.search(rf'\b{match[1]}\(', comment)):
            find(path, text, match.start(), f'{match[1]} has no comment with its SQL signature')


def check_errors(path, text):
    text = without_comments(text)
    for _, position, arguments in calls(text, 'ereport'):
        level = arguments.split(',')[0]
        if level not in UNCODED and not re.search(r'\berrcode(_\w+)?\s*\(', arguments):
            find(path, text, position, 'ereport without errcode')
    for name, position, arguments in calls(text, '|'.join(PRIMARY | SENTENCES)):
        # strings that follow each other are one
        for run in re.findall(rf'{STRING}(?:\s*{STRING})*', arguments):
            check_message(path, text, position, name,
                          ''.join(s[1:-1] for s in re.findall(STRING, run)))


def check_message(path, text, position, name, message):
    wrong = []
    if message == '%s':
        return
    if name in PRIMARY:
        if re.match(r'[A-Z][a-z ]', message):
            wrong.append('begins with a capital')
        if message.endswith('.'):
            wrong.append('ends with a period')
        if re.search(r'\b\w+\(|\bidem_\w+', message):
            wrong.append('names a function')
    else:
        if re.match(r'[a-z]', message):
            wrong.append('does not begin with a capital')
        if not message.endswith('.'):
            wrong.append('does not end with a period')
    if CONTRACTION.search(message):
        wrong.append('has a contraction')
    if VAGUE.search(message):
        wrong.append(f'says "{VAGUE.search(message)[0]}"')
    for what in wrong:
        find(path, text, position, f'{name} {what}: {message}')


def source():
    for path in sorted(SRC.glob('*.[ch]')):
        text = path.read_text()
        check_header(path, text)
        check_versions(path, text)
        check_descriptions(path, text)
        check_errors(path, text)


def symbols(room, kind):
    """Symbols that a room's object file defines (T, D, B, R) or wants (U)."""
    lines = subprocess.run(['nm', '-g', SRC / f'{room}.o'], check=True,
                           stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return {line.split()[-1] for line in lines if line.split()[-2] in kind}


def rooms(order):
    below = {room: set(order[i:]) for i, room in enumerate(order)}
    files = {path.stem for path in SRC.glob('*.c')}
    if files != set(order):
        findings.append(f'Makefile: ROOMS and src/*.c differ: {" ".join(sorted(files ^ set(order)))}')
    house = re.findall(r'^(\w+)\.c  ', Path('CONTRIBUTING.md').read_text(), re.M)
    if house != order:
        findings.append('CONTRIBUTING.md: the house is not in the order of ROOMS in the Makefile')

    for path in sorted(SRC.glob('*.[ch]')):
        text = path.read_text()
        for match in re.finditer(r'^#include "(\w+)\.h"$', text, re.M):
            if (SRC / f'{match[1]}.h').exists() and \
                    match[1] not in below.get(path.stem, set()) | SHARED:
                find(path, text, match.start(), f'{match[1]}.h is not of a room below')

    home = {symbol: room for room in order for symbol in symbols(room, 'TDBRC')}
    for room in order:
        for symbol in sorted(symbols(room, 'U')):
            if home.get(symbol, room) not in below[room]:
                findings.append(f'src/{room}.c: {symbol} is of {home[symbol]}.c, which is not below')


if sys.argv[1:] == ['source']:
    source()
elif sys.argv[1:2] == ['rooms'] and sys.argv[2:]:
    rooms(sys.argv[2:])
else:
    sys.exit(__doc__)
for finding in findings:
    print(finding)
sys.exit(bool(findings))
