"""Rows to a real PostgreSQL server, of which some are bad in each of the ways that a file has."""

from __future__ import annotations

import signal
from pathlib import Path

import psycopg
from kits.command_kit import until
from kits.example_kit import Example

WORKER = "python -m fluidfast worker orders:manager --processes 2"
QUEUE = "python -m fluidfast queue orders:manager insert_order --from orders.ndjson --on-error skip"
LIST = "python -m fluidfast dead orders:manager list"
REQUEUE = "python -m fluidfast dead orders:manager requeue --task insert_order"
ROWS = 6_000


def test_good_rows_are_stored_and_bad_ones_are_named(redis_url: str, postgres_url: str, tmp_path: Path) -> None:
    example = Example("rows_to_postgresql", tmp_path, FLUID_BROKER_URL=redis_url, DATABASE_URL=postgres_url)
    example.run("python orders.py")
    example.run("python make_orders.py 5000000 > orders.ndjson", replacing={"5000000": str(ROWS)})
    file = example.folder / "orders.ndjson"
    lines = file.read_text().splitlines()
    lines[99] = lines[99].replace('"customer"', '"client"')  # a field is missing
    lines[199] = lines[199].replace('"cents": 199', '"cents": "199"')  # a wrong type
    lines[299] = lines[299].replace('"cents": 299', '"cents": -299')  # the database refuses it
    lines[399] = lines[399].replace("customer-399", "\\u0000")  # and this
    lines.append(lines[0])  # a duplicate
    file.write_text("\n".join([*lines, lines[-1][:30]]))  # and the last line is cut
    with psycopg.connect(postgres_url, autocommit=True) as database:

        def stored() -> int:
            return database.execute("SELECT count(*) FROM orders").fetchone()[0]  # type: ignore[index]

        with example.start(WORKER) as worker:
            queued = example.try_line(QUEUE)
            assert queued.returncode == 1
            assert f"queued {ROWS - 1:,} runs" in queued.stdout
            for line in (100, 200, ROWS + 2):
                assert f"line {line:,}" in queued.stderr
            until(lambda: stored() == ROWS - 4, "all good rows")
            listed = until(lambda: (text := example.run(LIST)).count("insert_order") >= 2 and text, "two failures")
            assert "CheckViolation" in listed
            database.execute("ALTER TABLE orders DROP CONSTRAINT orders_cents_check")  # what was refused may be stored
            example.run(REQUEUE)
            until(lambda: stored() == ROWS - 3, "the row that was requeued")
            worker.signal(signal.SIGTERM)
            assert worker.end() == 0
