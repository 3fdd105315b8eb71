#!/usr/bin/python3
"""call.py MODULE KEY AMOUNT: calls a program of doc/recipes.md as others are called."""

import importlib
import json
import os
import sys

module, key, amount = sys.argv[1:]
if module == 'pay_django':
    import django
    from django.conf import settings
    settings.configure(DATABASES={'default': {
        'ENGINE': 'django.db.backends.postgresql', 'NAME': os.environ['PGDATABASE'], 'USER': os.environ['PGUSER'],
        'HOST': os.environ['PGHOST'], 'PORT': os.environ['PGPORT']}})
    django.setup()
outcome, response = importlib.import_module(module).pay(key, int(amount))
print(outcome, json.dumps(response) if response is not None else '')
