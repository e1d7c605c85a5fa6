"""Alembic's entry: migrates the connection that `state_store.migrate` hands over. There is no offline mode."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=False)
with context.begin_transaction():
    context.run_migrations()
