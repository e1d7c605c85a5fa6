"""The database: migrated, idempotent, bounded; and the ledger that writes behind."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from shoal_fake_fleet import ready_state

from shoal.controller.registry import Registry
from shoal.controller.request_log import MAX_PENDING, RequestLog
from shoal.controller.request_record import RequestRecord
from shoal.controller.state_store import NodeRow, StateStore, StateUnusable, migrate, requests_table


def record(number: int, **fields: Any) -> RequestRecord:
    defaults: dict[str, Any] = {
        "id": f"r{number}", "model": "tiny", "node": "n1", "attempts": 1, "finish_reason": "stop", "error_code": None, "prompt_tokens": 3,
        "completion_tokens": 4, "cached_tokens": 1, "received_at": float(number), "total_s": 0.5, "ttft_s": 0.1,
    }  # fmt: skip
    return RequestRecord(**(defaults | fields))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StateStore]:
    path = tmp_path / "home" / "state.db"
    migrate(path)
    opened = StateStore(path, max_requests=5)
    yield opened
    await opened.close()


def test_migrating_twice_is_harmless_and_gives_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    migrate(path)
    migrate(path)
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        names = {"received_at"}
        found = compare_metadata(MigrationContext.configure(connection), requests_table.metadata)
        # The index has another name in the migration than SQLAlchemy would give it; nothing else may differ.
        assert all(str(step[0]).endswith("_index") and {c.name for c in step[1].columns} == names for step in found)
    engine.dispose()


def test_a_file_of_a_later_version_or_no_database_is_refused_by_name(tmp_path: Path) -> None:
    later = tmp_path / "later.db"
    migrate(later)
    with sqlite3.connect(later) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StateUnusable, match=r"later\.db was written by a later version"):
        migrate(later)
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"this is no database, and long enough to be seen as none" * 20)
    with pytest.raises(StateUnusable, match=r"broken\.db"):
        migrate(broken)
    with pytest.raises(StateUnusable):
        migrate(tmp_path / "later.db" / "below" / "state.db")


async def test_a_record_written_twice_is_one_row_and_the_first_stands(store: StateStore) -> None:
    await store.write([record(1), record(2, node="n2", queue_s=0.25)], [])
    await store.write([record(1, finish_reason="abort")], [])
    assert await store.recent(10) == [record(2, node="n2", queue_s=0.25), record(1)]
    assert await store.get("r1") == record(1) and await store.get("r9") is None


async def test_the_ledger_keeps_the_newest(store: StateStore) -> None:
    await store.write([record(number) for number in range(12)], [])
    await store.prune()
    assert [r.id for r in await store.recent(100)] == ["r11", "r10", "r9", "r8", "r7"]


async def test_a_node_keeps_when_it_was_first_seen(store: StateStore) -> None:
    await store.write([], [NodeRow("n1", 1.0, "loading", "tiny")])
    await store.write([], [NodeRow("n1", 5.0, "lost", "tiny"), NodeRow("n2", 5.0, "ready", "tiny")])
    rows = await store.nodes()
    assert [(row["id"], row["first_seen"], row["last_seen"], row["state"]) for row in rows] == [
        ("n1", 1.0, 5.0, "lost"),
        ("n2", 5.0, 5.0, "ready"),
    ]


async def test_what_is_not_written_yet_is_read_too(store: StateStore) -> None:
    registry = Registry()
    entry = registry.register("n1", ready_state(), 0.0).entry
    ledger = RequestLog(store, registry)
    ledger.append(record(1))
    await ledger.flush()
    ledger.append(record(2))
    ledger.append(record(2, finish_reason="abort"))
    assert await ledger.recent(10) == [record(2), record(1)]
    assert await ledger.recent(1) == [record(2)]
    assert await ledger.get("r2") == record(2) and await ledger.get("r1") == record(1)
    await ledger.flush()
    assert await store.get("r2") == record(2)
    registry.lose("n1", entry.generation, 1.0)
    await ledger.flush()
    assert (await store.nodes())[0]["state"] == "lost"


async def test_the_ledger_writes_by_itself_and_survives_a_disk_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = StateStore(path)  # without tables: every write fails
    ledger = RequestLog(store, Registry())
    ledger.append(record(1))
    with pytest.raises(sa.exc.SQLAlchemyError):
        await ledger.flush()
    migrate(path)
    writing = asyncio.ensure_future(ledger.run())
    for _ in range(300):
        if await store.get("r1"):
            break
        await asyncio.sleep(0.01)
    writing.cancel()
    assert await store.get("r1") == record(1)
    await store.close()


async def test_pending_records_are_bounded(store: StateStore) -> None:
    ledger = RequestLog(store, Registry())
    for number in range(MAX_PENDING + 2):
        ledger.append(record(number))
    assert ledger.num_dropped == 2
    assert (await ledger.recent(1))[0].id == f"r{MAX_PENDING + 1}"
    assert await ledger.get("r1") is None and await ledger.get("r2") is not None
