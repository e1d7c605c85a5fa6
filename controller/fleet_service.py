"""The fleet for administrators: `Fleet` of proto/v1/fleet.proto."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from shoal.proto.v1 import fleet_pb2, fleet_pb2_grpc

from .errors import NotFound
from .inference_service import abort
from .node_view import node_message
from .registry import Registry

WATCH_INTERVAL_S = 0.1
"""A watcher looks this often: however fast nodes change, it gets the newest of each and never falls behind."""

_Context = Any


class FleetService(fleet_pb2_grpc.FleetServicer):
    """Reads the registry; writes nothing. `stopping` ends the watches."""

    def __init__(self, registry: Registry, stopping: asyncio.Event) -> None:
        self._registry = registry
        self._stopping = stopping
        self._now = time.monotonic

    async def ListNodes(self, request: fleet_pb2.ListNodesRequest, context: _Context) -> fleet_pb2.ListNodesResponse:
        now = self._now()
        entries = sorted(self._registry, key=lambda entry: entry.id)
        return fleet_pb2.ListNodesResponse(nodes=[node_message(entry, now) for entry in entries])

    async def GetNode(self, request: fleet_pb2.GetNodeRequest, context: _Context) -> fleet_pb2.GetNodeResponse:
        entry = self._registry.get(request.id)
        if entry is None:
            await abort(context, NotFound(f"there is no node {request.id!r}", param="id", code="node_not_found"))
        return fleet_pb2.GetNodeResponse(node=node_message(entry, self._now()))

    async def WatchNodes(
        self, request: fleet_pb2.WatchNodesRequest, context: _Context
    ) -> AsyncIterator[fleet_pb2.WatchNodesResponse]:
        """Every node first, then each change; a node that is forgotten comes once more with `removed`."""
        seen, known = -1, set[str]()
        while not self._stopping.is_set():
            if self._registry.version != seen:
                changes = self._registry.changes_since(seen, known)
                seen = changes.version
                now = self._now()
                for node_id in changes.removed:
                    known.discard(node_id)
                    yield fleet_pb2.WatchNodesResponse(node=fleet_pb2.Node(id=node_id), removed=True)
                for entry in changes.changed:
                    known.add(entry.id)
                    yield fleet_pb2.WatchNodesResponse(node=node_message(entry, now))
            await asyncio.sleep(WATCH_INTERVAL_S)
