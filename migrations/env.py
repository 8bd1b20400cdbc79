"""Runs migrations on the connection that alignment.db.migrate opened."""

from alembic import context

from alignment.db.tables import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("Run migrations with `attune db upgrade`; it sets up the connection.")

# SQLite can roll DDL back too; Alembic only believes it when told.
context.configure(
    connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True, compare_type=True
)
with context.begin_transaction():
    context.run_migrations()
