"""Alembic calls this file for each of its commands. ``upgrade`` gives it the connection and the store."""

from alembic import context

from fluidfast.observe.history.upgrade import VERSIONS

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    version_table=f"{attributes['store'].runs.name}_{VERSIONS}",
    target_metadata=attributes["store"].metadata,
)
with context.begin_transaction():
    context.run_migrations()
