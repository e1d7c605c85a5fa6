"""Short questions to an engine that take no slot: tokenize and detokenize."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from shoal.proto.v1 import generation_pb2, link_pb2

from .errors import DeadlineExceeded, NoCapacity, NodeLost
from .lookup import check_ids, require_served, resolve_model
from .node_error import call_error
from .registry import Registry
from .router import MAX_CONSIDERED, Wanted, load

CALL_TIMEOUT_S = 20.0
"""An engine answers between two steps; a long prefill chunk on a slow machine takes seconds."""

MAX_CALLS = 1024
"""Calls under way at a time; more are refused."""


class _Links(Protocol):
    def send(self, node_id: str, generation: int, frame: link_pb2.ControllerFrame) -> bool: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    node_id: str
    generation: int
    answer: asyncio.Future[link_pb2.CallResult]


class Calls:
    """The calls under way, by the id that was drawn for each."""

    def __init__(self, registry: Registry, links: _Links) -> None:
        self._registry = registry
        self._links = links
        self._asked: dict[str, _Asked] = {}
        self._num_calls = 0

    async def ask(self, model: str, call: link_pb2.Call) -> link_pb2.CallResult:
        """Put the question to the least loaded node of the model. `call.call_id` is set here.

        Raises NotFound, Unavailable, BadRequest, NoCapacity, NodeLost, EngineFailed, DeadlineExceeded.
        """
        wanted = Wanted(resolve_model(self._registry, model))
        require_served(self._registry, wanted)
        nodes = list(islice(self._registry.ready(wanted.model), MAX_CONSIDERED))
        if call.HasField("detokenize"):
            _check(call.detokenize, min(entry.state.model.vocab_size for entry in nodes))
        if len(self._asked) >= MAX_CALLS:
            raise NoCapacity(f"{MAX_CALLS} calls are under way", retry_after_s=1.0)
        node = min(nodes, key=lambda entry: (load(entry) / max(1, entry.state.slots), entry.id))
        self._num_calls += 1
        call.call_id = f"c{self._num_calls}"
        asked = _Asked(node.id, node.generation, asyncio.get_running_loop().create_future())
        self._asked[call.call_id] = asked
        try:
            if not self._links.send(node.id, node.generation, link_pb2.ControllerFrame(call=call)):
                raise NodeLost(f"the link to node {node.id} ended")
            async with asyncio.timeout(CALL_TIMEOUT_S):
                result = await asked.answer
        except TimeoutError:
            raise DeadlineExceeded(f"node {node.id} did not answer within {CALL_TIMEOUT_S:g} s") from None
        finally:
            del self._asked[call.call_id]
        if result.HasField("error"):
            raise call_error(result.error, node.id)
        return result

    def on_answer(self, node_id: str, generation: int, result: link_pb2.CallResult) -> None:
        """An answer came; one that nobody waits for is dropped."""
        asked = self._asked.get(result.call_id)
        if asked is not None and (asked.node_id, asked.generation) == (node_id, generation) and not asked.answer.done():
            asked.answer.set_result(result)

    def on_node_lost(self, node_id: str, generation: int) -> None:
        """Nobody answers there any more."""
        for asked in self._asked.values():
            if asked.generation == generation and not asked.answer.done():
                asked.answer.set_exception(NodeLost(f"node {node_id} was lost while it had the call"))


def _check(ids: generation_pb2.TokenIds, vocab_size: int) -> None:
    if vocab_size:
        check_ids("tokens", ids.token_ids, vocab_size)
