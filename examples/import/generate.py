#!/usr/bin/python3
"""Writes two files of a bank that overlap, and one of readings, the same in each run.

    generate.py DIRECTORY

january.csv has 20000 rows. Of these, 500 are there twice, 40 come again with another
amount, and 20 are no payments: those with references from R-000800 on. february.csv has
12000 rows in no order, half of which are in january.csv, too; 60 of these with another
amount.

readings.csv has 10000 rows, of 4 sensors that measure twice a minute and write down the
minute: many rows are equal to another one.
"""

import csv
import random
import sys

HEADER = ['account', 'reference', 'booked_on', 'amount', 'purpose']


def payment(n):
    """The same in both files, since the numbers of its digits follow from n."""
    amount = f'{n * 7919 % 100000 / 100 - 300:.2f}'
    return [f'DE{n % 37:02}', f'R-{n // 37:06}', f'2026-{1 + n // 14000:02}-{1 + n % 28:02}',
            amount, f'Invoice {n}, "part {n % 3}"\nof the year']


def with_other_amount(row):
    return [*row[:3], f'{float(row[3]) + 0.01:.2f}', row[4]]


def january(mixer):
    payments = [payment(n) for n in range(19440)]
    again = mixer.sample(payments, 540)
    rows = payments + again[:500] + [with_other_amount(row) for row in again[500:]]
    for n in range(20):
        row = payment(30000 + n)
        column, value = ((0, ''), (2, '2026-02-30'), (3, '12,50'), (3, '1e3'), (4, '\0'))[n % 5]
        row[column] = value
        rows.append(row[:4] if n == 5 else row)
    # those that come again come soon, or late
    order = sorted(range(len(rows)), key=lambda i: i if i < 19440 else mixer.random() * 19440)
    return [rows[i] for i in order]


def february(mixer):
    rows = [payment(n) for n in range(13440, 25440)]
    for i in mixer.sample(range(6000), 60):
        rows[i] = with_other_amount(rows[i])
    mixer.shuffle(rows)
    return rows


def readings():
    for n in range(10000):
        minute = n // 8
        value = 20 + (n % 4) + (minute % 10 if n % 8 < 4 or n % 16 < 8 else 0.5)
        yield f'sensor {n % 4}', f'2026-01-01 {minute // 60:02}:{minute % 60:02}Z', f'{value:.1f}'


def main(directory):
    for name, rows in (('january', [HEADER, *january(random.Random(1))]),
                       ('february', [HEADER, *february(random.Random(2))]),
                       ('readings', [['sensor', 'at', 'value'], *readings()])):
        with open(f'{directory}/{name}.csv', 'w', encoding='utf-8', newline='') as file:
            csv.writer(file).writerows(rows)


main(sys.argv[1])
