"""Alembic reads this file; the connection, already in a transaction, comes from `database.py`."""

from alembic import context

from chiasm.operations.migrations import VERSION_TABLE
from chiasm.operations.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
