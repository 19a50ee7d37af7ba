"""Print rows as NDJSON: python make_orders.py ROWS"""

import sys

for number in range(int(sys.argv[1])):
    minute, second = divmod(number, 60)
    hour, minute = divmod(minute, 60)
    print(
        f'{{"id": {number}, "customer": "customer-{number % 1000}", "cents": {number % 10_000}, '
        f'"at": "2026-11-{1 + hour // 24 % 30:02}T{hour % 24:02}:{minute:02}:{second:02}Z"}}'
    )
