"""Calls that psycopg2 does not know how to make: by the extended query protocol with
binary parameters and results, and by the fast path, which knows of no query at all.

The connection is psycopg2's, and so are those who listen to its notices.
"""

import ctypes
import mmap

LARGEST = 1 << 28                       # result of the fast path

OK = (1, 2)                             # PGRES_COMMAND_OK, PGRES_TUPLES_OK

libpq = ctypes.CDLL('libpq.so.5')
libpq.PQexecParams.restype = ctypes.c_void_p
libpq.PQfn.restype = ctypes.c_void_p
libpq.PQresultErrorField.restype = ctypes.c_char_p


# memory that is not touched costs nothing
memory = mmap.mmap(-1, LARGEST, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
buffer = (ctypes.c_char * LARGEST).from_buffer(memory)


class Block(ctypes.Structure):
    """PQArgBlock."""
    _fields_ = [('length', ctypes.c_int), ('is_int', ctypes.c_int), ('data', ctypes.c_char_p)]


class Answer:
    """What has come of a call; its fields are called as psycopg2 calls them."""

    def __init__(self, result):
        result = ctypes.c_void_p(result)
        self.failed = libpq.PQresultStatus(result) not in OK
        for name, letter in (('sqlstate', 'C'), ('message_primary', 'M'), ('message_detail', 'D'),
                             ('message_hint', 'H'), ('context', 'W'), ('internal_query', 'q'),
                             ('source_file', 'F'), ('source_line', 'L')):
            value = libpq.PQresultErrorField(result, ord(letter))
            setattr(self, name, value and value.decode(errors='replace'))
        libpq.PQclear(result)


def extended(connection, sql, types, values):
    """Values are bytes as the types' send functions make them, or None."""
    n = len(values)
    return Answer(libpq.PQexecParams(
        ctypes.c_void_p(connection.pgconn_ptr), sql.encode(), n,
        (ctypes.c_uint * n)(*types), (ctypes.c_char_p * n)(*values),
        (ctypes.c_int * n)(*(len(v or b'') for v in values)), (ctypes.c_int * n)(*[1] * n), 1))


def fast_path(connection, function, values):
    """The same of a function that is named by its OID."""
    blocks = (Block * max(1, len(values)))()
    for block, value in zip(blocks, values):
        block.length = -1 if value is None else len(value)
        block.data = value
    length = ctypes.c_int()
    return Answer(libpq.PQfn(ctypes.c_void_p(connection.pgconn_ptr), ctypes.c_uint(function), buffer,
                             ctypes.byref(length), 0, blocks, len(values)))
