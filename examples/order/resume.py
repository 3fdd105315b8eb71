#!/usr/bin/python3
"""Goes on with orders that nobody works on: without their clients, who may never come again.

    resume.py           looks for them every PAUSE seconds (1)
    resume.py --once    looks once

An order is open as long as its flow is not finished; its row was committed with the claim
of its key. What is known of the key says whether there is something to do: a lease that
ran out, since its holder died; or a failure whose time for another attempt has come. It
is then claimed and run as a repeat of the request would be, so there may be several of
these programs, and clients at the same time: one of them gets it.
"""

import contextlib
import logging
import os
import sys
import time

import psycopg2

import flow
import shop

PAUSE = float(os.environ.get('PAUSE', 1))

log = logging.getLogger('resume')


def due():
    with contextlib.closing(flow.connect()) as db, db.cursor() as cursor:
        cursor.execute('''
            SELECT o.key, o.request
              FROM orders AS o, idem_lookup(o.key, %s) AS k
             WHERE o.state = 'open'
               AND (k.state = 'in_progress' AND k.lease_until < clock_timestamp()
                    OR k.state = 'retry_later' AND k.retry_at < clock_timestamp())
             ORDER BY o.id LIMIT 100''', [shop.SCOPE])
        return cursor.fetchall()


def main(once=None):
    logging.basicConfig(format='%(message)s', level=logging.INFO)
    while True:
        try:
            for key, request in due():
                log.info('%s: %s', key, shop.handle(key, request).body)
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            log.warning('database: %s', error)
        if once:
            return
        time.sleep(PAUSE)


main(*sys.argv[1:])
