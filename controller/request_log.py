"""The ledger as the running controller uses it: records in at once, written behind in batches, read back complete."""

from __future__ import annotations

import asyncio
import logging
import time

import sqlalchemy as sa

from .node_view import state_word
from .registry import Registry
from .request_record import RequestRecord
from .state_store import NodeRow, StateStore

WRITE_INTERVAL_S = 0.25
MAX_BATCH = 512
"""Records a transaction."""

MAX_PENDING = 16_384
"""Records that wait for the disk. Beyond it the oldest are dropped and counted: serving goes before book-keeping."""

PRUNE_EVERY = 2_000
"""Records between two prunings, so that the table is at most this much over its bound."""

MAX_RECENT = 1_000

log = logging.getLogger(__name__)


class RequestLog:
    """`append` is called at each end of a request; `run` writes until cancelled; `flush` writes the rest."""

    def __init__(self, store: StateStore, registry: Registry) -> None:
        self.num_dropped = 0
        self._store = store
        self._registry = registry
        self._pending: dict[str, RequestRecord] = {}
        self._written_nodes: dict[str, tuple[str, str]] = {}
        self._num_unpruned = PRUNE_EVERY
        self._seen_version = -1
        self._lock = asyncio.Lock()

    def append(self, record: RequestRecord) -> None:
        """Never blocks, never fails. A second record of one id is ignored while the first is pending, and by the table after."""
        if len(self._pending) >= MAX_PENDING:
            del self._pending[next(iter(self._pending))]
            self.num_dropped += 1
        self._pending.setdefault(record.id, record)

    async def recent(self, limit: int = 100) -> list[RequestRecord]:
        """The newest ended requests, newest first; at most MAX_RECENT."""
        limit = max(0, min(limit, MAX_RECENT))
        found = {record.id: record for record in await self._store.recent(limit)}
        found |= self._pending
        return sorted(found.values(), key=lambda record: record.received_at, reverse=True)[:limit]

    async def get(self, request_id: str) -> RequestRecord | None:
        """One ended request; None when it is unknown, still running or pruned."""
        return self._pending.get(request_id) or await self._store.get(request_id)

    async def run(self) -> None:
        """Write behind, until cancelled. A full or broken disk is logged and tried again."""
        while True:
            await asyncio.sleep(WRITE_INTERVAL_S)
            try:
                await self.flush()
            except sa.exc.SQLAlchemyError as error:
                log.error("cannot write the ledger, %d records wait: %s", len(self._pending), type(error).__name__)
                await asyncio.sleep(10 * WRITE_INTERVAL_S)

    async def flush(self) -> None:
        """Write everything that waits. Raises SQLAlchemyError; what was not written waits on."""
        async with self._lock:  # the last flush must not write what the loop is writing
            nodes = self._changed_nodes()
            while self._pending or nodes:
                batch = list(self._pending.values())[:MAX_BATCH]
                await self._store.write(batch, nodes)
                self._written_nodes.update({row.id: (row.state, row.model) for row in nodes})
                nodes = []
                for record in batch:
                    self._pending.pop(record.id, None)
                self._num_unpruned += len(batch)
            if self._num_unpruned >= PRUNE_EVERY:
                await self._store.prune()
                self._num_unpruned = 0

    def _changed_nodes(self) -> list[NodeRow]:
        """Nodes whose state or model is not what the table says; nodes forgotten by the registry are forgotten here."""
        if self._registry.version == self._seen_version:
            return []
        self._seen_version = self._registry.version
        now = time.time()
        rows = [NodeRow(entry.id, now, state_word(entry), entry.model_name) for entry in self._registry]
        if len(self._written_nodes) > len(rows):
            present = {row.id for row in rows}
            self._written_nodes = {key: value for key, value in self._written_nodes.items() if key in present}
        return [row for row in rows if self._written_nodes.get(row.id) != (row.state, row.model)]
