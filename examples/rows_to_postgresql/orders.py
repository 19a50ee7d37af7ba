"""Write orders to PostgreSQL: one run for each row, thousands of runs in each INSERT."""

import os
from datetime import datetime
from typing import Annotated, Any

import msgspec
import psycopg

from fluidfast import RetryPolicy, TaskManager, TaskRun, task

DATABASE = os.environ.get("DATABASE_URL", "postgresql://localhost/postgres")

CREATE = """
CREATE TABLE IF NOT EXISTS orders (
    id bigint PRIMARY KEY,
    customer text NOT NULL,
    cents bigint NOT NULL CHECK (cents >= 0),
    at timestamptz NOT NULL
)
"""

# A run that is delivered twice, and a row that is in the file twice, change nothing.
INSERT = "INSERT INTO orders SELECT * FROM json_populate_recordset(NULL::orders, %s) ON CONFLICT (id) DO NOTHING"


class Order(msgspec.Struct):
    """A row. `queue --from` refuses lines that lack a field or have one of another type."""

    id: int
    customer: Annotated[str, msgspec.Meta(min_length=1)]
    cents: int
    at: datetime


# When the database is away, the batch is retried for about five minutes. Other errors are not: see write().
DATABASE_IS_AWAY = RetryPolicy(max_attempts=10, wait=1, backoff=2, max_wait=60, exceptions=(psycopg.OperationalError,))


@task(batch=5_000, batch_wait=0.5, timeout_seconds=120, retry=DATABASE_IS_AWAY)
async def insert_order(runs: list[TaskRun[Order]]) -> dict[str, Exception]:
    """Insert the rows of up to 5,000 runs. Return the errors of those that the database refuses, by run id."""
    async with await psycopg.AsyncConnection.connect(DATABASE, autocommit=True) as connection:
        return await write(connection, runs)


async def write(connection: psycopg.AsyncConnection[Any], runs: list[TaskRun[Order]]) -> dict[str, Exception]:
    """Insert rows in one statement. If the database refuses it, halve the batch, and find the rows that are wrong."""
    try:
        rows = msgspec.json.encode([run.params for run in runs])
        await connection.execute(INSERT, [rows.decode()])
    except (psycopg.DataError, psycopg.IntegrityError) as exc:
        if len(runs) == 1:
            return {runs[0].id: exc}
        half = len(runs) // 2
        return {**await write(connection, runs[:half]), **await write(connection, runs[half:])}
    return {}


manager = TaskManager(broker_url=os.environ.get("FLUID_BROKER_URL", "redis://localhost:6379"))
manager.register_task(insert_order)

if __name__ == "__main__":
    with psycopg.connect(DATABASE) as created:
        created.execute(CREATE)
