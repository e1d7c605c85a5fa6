"""What outlives the controller: nodes ever seen and the ledger of ended requests, by default in SQLite.

Never heartbeats, tokens, prompts or answers. All writes go through `StateWriter` in batches; serving never waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from .request_record import RequestRecord

BUSY_TIMEOUT_S = 5.0
"""A second controller on the same file may hold its lock this long."""

MAX_REQUESTS = 100_000
"""Rows of the ledger; older ones are pruned."""

MAX_NODE_ROWS = 10_000

_metadata = sa.MetaData()

nodes_table = sa.Table(
    "nodes",
    _metadata,
    sa.Column("id", sa.String(128), primary_key=True),
    sa.Column("first_seen", sa.Float, nullable=False),
    sa.Column("last_seen", sa.Float, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("model", sa.String(512), nullable=False),
)

requests_table = sa.Table(
    "requests",
    _metadata,
    sa.Column("id", sa.String(128), primary_key=True),
    sa.Column("model", sa.String(512), nullable=False),
    sa.Column("node", sa.String(128), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("finish_reason", sa.String(32), nullable=False),
    sa.Column("error_code", sa.String(128)),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("cached_tokens", sa.Integer, nullable=False),
    sa.Column("received_at", sa.Float, nullable=False, index=True),
    sa.Column("total_s", sa.Float, nullable=False),
    sa.Column("queue_s", sa.Float),
    sa.Column("prefill_s", sa.Float),
    sa.Column("ttft_s", sa.Float),
    sa.Column("decode_s", sa.Float),
    sa.Column("is_part", sa.Boolean, nullable=False),
)


class StateUnusable(Exception):
    """The database cannot be opened or is of a later version; the message names the file and what to do."""


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node as last seen; instants in seconds since the epoch."""

    id: str
    seen_at: float
    state: str
    model: str


def migrate(path: Path) -> None:
    """Create the file or bring it to the newest version. Blocks: call it in a thread. Raises StateUnusable."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            # One controller migrates at a time; a second one waits for the lock and finds the work done.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    except (CommandError, RevisionError) as error:
        message = f"{path} was written by a later version: {error}; move it away to start with an empty one"
        raise StateUnusable(message) from error
    except (sa.exc.SQLAlchemyError, OSError) as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        raise StateUnusable(f"cannot use the database {path}: {cause}") from error
    finally:
        engine.dispose()


class StateStore:
    """The open database. Idempotent: writing a record twice leaves one row."""

    def __init__(self, path: Path, max_requests: int = MAX_REQUESTS) -> None:
        self._max_requests = max_requests
        self._engine: AsyncEngine = create_async_engine(
            f"sqlite+aiosqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S}
        )

    async def write(self, records: Sequence[RequestRecord], nodes: Sequence[NodeRow]) -> None:
        """One transaction for both."""
        async with self._engine.begin() as connection:
            if records:
                statement = insert(requests_table).on_conflict_do_nothing(index_elements=["id"])
                await connection.execute(statement, [asdict(record) for record in records])
            if nodes:
                new = insert(nodes_table)
                seen = {"last_seen": new.excluded.last_seen, "state": new.excluded.state, "model": new.excluded.model}
                rows = [
                    {"id": n.id, "first_seen": n.seen_at, "last_seen": n.seen_at, "state": n.state, "model": n.model}
                    for n in nodes
                ]
                await connection.execute(new.on_conflict_do_update(index_elements=["id"], set_=seen), rows)

    async def prune(self) -> None:
        """Keep the newest rows of each table."""
        async with self._engine.begin() as connection:
            for table, column, limit in (
                (requests_table, requests_table.c.received_at, self._max_requests),
                (nodes_table, nodes_table.c.last_seen, MAX_NODE_ROWS),
            ):
                oldest = sa.select(column).order_by(column.desc()).limit(1).offset(limit).scalar_subquery()
                await connection.execute(sa.delete(table).where(column <= oldest))

    async def recent(self, limit: int) -> list[RequestRecord]:
        """The newest records, newest first."""
        query = sa.select(requests_table).order_by(requests_table.c.received_at.desc()).limit(limit)
        async with self._engine.connect() as connection:
            return [RequestRecord(**row) for row in (await connection.execute(query)).mappings()]

    async def get(self, request_id: str) -> RequestRecord | None:
        """One record."""
        query = sa.select(requests_table).where(requests_table.c.id == request_id)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else RequestRecord(**row)

    async def nodes(self) -> list[dict[str, object]]:
        """Every node ever seen and not pruned, by id."""
        async with self._engine.connect() as connection:
            rows = (await connection.execute(sa.select(nodes_table).order_by(nodes_table.c.id))).mappings()
            return [dict(row) for row in rows]

    async def close(self) -> None:
        """Release the file."""
        await self._engine.dispose()
