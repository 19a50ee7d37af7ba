"""A data engineer with a file of rows, some of them bad, who has the page on rows to a database and nothing else."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import psycopg
import pytest
from kits.command_kit import until
from kits.example_kit import EXAMPLES, PageReader, shell_lines, started, titled_blocks
from kits.postgres import PostgresServer

PAGE = "docs/how-to/rows-to-a-database.md"
CREATE = "python orders.py"
MAKE = "python make_orders.py 1000000 > orders.ndjson"
WORKERS = "fluidfast worker orders:manager --processes 2"
QUEUE = "fluidfast queue orders:manager insert_order --from orders.ndjson --rejects bad.ndjson"
QUEUE_MENDED = "fluidfast queue orders:manager insert_order --from bad.ndjson"
LIST = "fluidfast dead orders:manager list"
REQUEUE = "fluidfast dead orders:manager requeue --task insert_order"


def test_the_example_is_that_of_the_page() -> None:
    folder = EXAMPLES / "rows_to_postgresql"
    text = (EXAMPLES.parent / PAGE).read_text()
    assert titled_blocks(text) == {path.name: path.read_text() for path in folder.glob("*.py")}
    lines = [line.replace("5000000", "1000000") for line in shell_lines((folder / "README.md").read_text())]
    assert set(lines) <= set(shell_lines(text))


def count(database: psycopg.Connection) -> int:
    [number] = database.execute("SELECT count(*) FROM orders").fetchone() or [0]
    return int(number)


def test_bad_rows_are_named_and_good_ones_stored(redis_url: str, postgres_url: str, tmp_path: Path) -> None:
    rows = 6_000
    reader = PageReader(PAGE, tmp_path, FLUID_BROKER_URL=redis_url, DATABASE_URL=postgres_url)
    reader.run(CREATE)
    reader.run(MAKE, replacing={"1000000": str(rows)})
    file = tmp_path / "orders.ndjson"
    lines = file.read_text().splitlines()
    lines[99] = lines[99].replace('"customer"', '"client"')  # a field is missing
    lines[199] = lines[199].replace('"cents": 199', '"cents": "199"')  # a wrong type
    lines[299] = lines[299].replace('"cents": 299', '"cents": -299')  # the database refuses it
    lines[399] = lines[399].replace("customer-399", "\\u0000")  # and this
    lines += lines[:10]  # duplicates
    file.write_text("\n".join([*lines, lines[-1][:30]]))  # and the last line is cut
    with psycopg.connect(postgres_url, autocommit=True) as database, reader.start(WORKERS) as workers:
        queued = reader.try_line(QUEUE)
        assert queued.returncode == 1
        assert f"queued {rows + 8:,} runs" in queued.stdout, "those of two bad lines are missing, ten are duplicates"
        bad = tmp_path / "bad.ndjson"
        said = bad.read_text()
        for line, why in ((100, "customer"), (200, "cents"), (rows + 11, "JSON")):
            assert re.search(rf"line {line}:.*{why}", said), said
        mended = [line.replace("client", "customer").replace('"199"', "199") for line in said.splitlines()]
        bad.write_text("\n".join(line for line in mended if not line.startswith("{") or line.endswith("}")))
        reader.run(QUEUE_MENDED)
        until(lambda: count(database) == rows - 2, "all good rows")
        failed = until(lambda: "CheckViolation" in (text := reader.run(LIST)) and text, "the failures")
        assert "Untranslatable" in failed
        assert "UniqueViolation" not in failed, "a duplicate is no failure"
        database.execute("ALTER TABLE orders DROP CONSTRAINT orders_cents_check")
        reader.run(REQUEUE)
        until(lambda: count(database) == rows - 1, "the row that the database takes now")
        workers.signal(signal.SIGTERM)
        assert workers.end() == 0


@pytest.mark.soak
def test_a_million_rows_at_a_quarter_of_the_rate_of_one_copy(redis_url: str, tmp_path: Path) -> None:
    """pytest -m soak -n 0 -s tests/newcomer/test_rows.py"""
    rows = 1_000_000
    with PostgresServer(durable=True) as server, psycopg.connect(server.url, autocommit=True) as database:
        reader = PageReader(PAGE, tmp_path, FLUID_BROKER_URL=redis_url, DATABASE_URL=server.url)
        reader.run(CREATE)
        reader.run(MAKE)
        copy_seconds = one_copy(database, tmp_path / "orders.ndjson")
        with reader.start(WORKERS) as workers:
            started(workers)
            began = time.perf_counter()
            assert f"queued {rows:,} runs" in reader.run(QUEUE)
            queue_seconds = time.perf_counter() - began
            until(lambda: count(database) == rows, "all rows", seconds=600)
            seconds = time.perf_counter() - began
            workers.signal(signal.SIGTERM)
            assert workers.end() == 0
    print(
        f"\none COPY {rows / copy_seconds:,.0f} rows/s; queue {rows / queue_seconds:,.0f}/s; from file to table "
        f"{rows / seconds:,.0f}/s, {copy_seconds / seconds:.2f} of one COPY"
    )
    assert seconds <= 4 * copy_seconds


def one_copy(database: psycopg.Connection, path: Path) -> float:
    """Seconds for the same rows by one COPY from a Python program that reads and checks the same file."""
    import msgspec

    class Order(msgspec.Struct):
        id: int
        customer: str
        cents: int
        at: str

    database.execute("CREATE TABLE copied (LIKE orders INCLUDING ALL)")
    decode = msgspec.json.Decoder(Order).decode
    began = time.perf_counter()
    with path.open("rb") as file, database.cursor() as cursor, cursor.copy("COPY copied FROM STDIN") as copy:
        for line in file:
            order = decode(line)
            copy.write_row((order.id, order.customer, order.cents, order.at))
    return time.perf_counter() - began
