"""The table of runs, as aio-fluid has it, and the table of attempts."""

import sqlalchemy as sa
from alembic import context, op

from fluidfast.observe.history.tables import runs_table

revision = "1"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables that there are not. A table of runs that there is stays as it is."""
    attributes = context.config.attributes
    store, done = attributes["store"], attributes["done"]
    names = sa.inspect(op.get_bind()).get_table_names()
    name = store.runs.name
    if name in names:
        done.append(f"adopted {name}")
    else:
        runs_table(name, sa.MetaData(), wide=True).create(op.get_bind())
        done.append(f"created {name}")
    if store.attempts.name not in names:
        store.attempts.create(op.get_bind())
        done.append(f"created {store.attempts.name}")
