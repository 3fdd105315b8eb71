#!/usr/bin/python3
"""Runs a program, and stops it (SIGSTOP) as soon as its flow has reached a point.

    accident.py POINT PROGRAM [ARGUMENT...]

Points are what flow.py logs: "charge called" for instance. Whoever started it kills it
there, or lets it go on later. All points that are reached are lines on standard error.
"""

import logging
import os
import runpy
import signal
import sys
import threading


class Stop(logging.Handler):
    def emit(self, record):
        print('reached', record.getMessage().split(': ')[-1], file=sys.stderr, flush=True)
        if record.getMessage().endswith(f': {point}'):
            # to this thread: else another one takes it, and this one may go on for a moment
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


point, *sys.argv = sys.argv[1:]
logger = logging.getLogger('flow')
logger.setLevel(logging.DEBUG)
logger.addHandler(Stop())
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name='__main__')
