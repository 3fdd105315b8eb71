"""Calls to outside systems, behind circuit breakers that all connections share.

TIMEOUT, in seconds, is how long the other side may be silent; it is to be well below the
lease of a flow, which is renewed before the call.
"""

import datetime
import http.client
import json
import os
import time
import urllib.parse

from flow import NotNow

TIMEOUT = float(os.environ.get('TIMEOUT', 10))


def ask(sql, breaker, url, body, key):
    """POST; status and body of the answer. NotNow if there is none, or none to be had:
    then nobody knows what the other side has done, and it is to be asked again, under
    the same key."""
    allowed, state, retry_after = sql(
        'SELECT allowed, state, retry_after FROM idem_breaker_allow(%s)', breaker)
    if not allowed:
        raise NotNow(f'{breaker}: the circuit breaker is {state}', retry_after)
    begun = time.monotonic()
    failure = retry_in = None
    try:
        status, headers, answer = post(url, body, key)
        if status >= 500 or status == 429:
            failure = f'status {status}'
            retry_in = seconds(headers['Retry-After'])
    except (OSError, http.client.HTTPException, ValueError) as error:
        failure = f'{type(error).__name__}: {error}'
    sql('SELECT idem_breaker_record(%s, %s, duration => %s)',
        breaker, failure is None, datetime.timedelta(seconds=time.monotonic() - begun))
    if failure:
        raise NotNow(f'{breaker}: {failure}', retry_in)
    return status, answer


def post(url, body, key):
    url = urllib.parse.urlsplit(url)
    kind = {'http': http.client.HTTPConnection, 'https': http.client.HTTPSConnection}[url.scheme]
    connection = kind(url.netloc, timeout=TIMEOUT)
    try:
        connection.request('POST', url.path, json.dumps(body), {
            'Content-Type': 'application/json', 'Idempotency-Key': key})
        response = connection.getresponse()
        text = response.read()
        return response.status, response.headers, json.loads(text) if text else None
    finally:
        connection.close()


def seconds(retry_after):
    """Of a Retry-After that is a number; a date is not worth the trouble here."""
    if retry_after and retry_after.isascii() and retry_after.isdigit():
        return datetime.timedelta(seconds=min(int(retry_after), 86400))
    return None
