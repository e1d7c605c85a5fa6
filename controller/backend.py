"""The seam between the client-facing edges (HTTP, gRPC) and what dispatches to nodes.

`dispatch.Dispatcher` is the implementation; a double for tests of the edges stands beside them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from shoal.proto.v1 import fleet_pb2, generation_pb2, inference_pb2


class OutputStream(Protocol):
    """One request in flight. Iterating yields the outputs of one flush at a time, in order, until every choice has finished.

    Raises `NodeLost`, `EngineFailed`, `DeadlineExceeded` or `BadRequest` (refused by the engine) while iterating.
    """

    request_id: str
    node_id: str
    attempts: int

    def __aiter__(self) -> AsyncIterator[list[generation_pb2.Output]]: ...

    async def aclose(self) -> None:
        """Cancels what has not finished, all the way to the engine. Safe to call twice, and after the end."""
        ...


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """What belongs to a call but not to the request that the engine sees."""

    request_id: str
    node_id: str | None = None
    """Pins a node; unknown ids raise NotFound with code `node_not_found`."""
    timeout_s: float | None = None
    """The client's remaining deadline, in seconds."""
    is_part: bool = False
    """A later prompt of a request whose first prompt stands for all: its tokens count, the request does not count again."""


class Backend(Protocol):
    """What an edge may ask of the fleet."""

    async def generate(self, request: generation_pb2.GenerationRequest, options: GenerateOptions) -> OutputStream:
        """Waits for a slot and sends the request. Raises NotFound, NoCapacity, Unavailable, BadRequest, DeadlineExceeded."""
        ...

    async def tokenize(self, model: str, prompt: generation_pb2.Prompt) -> list[int]:
        """Ids of the prompt on a node that serves the model."""
        ...

    async def detokenize(self, model: str, token_ids: list[int]) -> str:
        """Text of the ids, special tokens included."""
        ...

    def models(self) -> list[inference_pb2.Model]:
        """What serves now, largest first, the alias `auto` (a copy of the first under that id) last."""
        ...

    def nodes(self) -> list[fleet_pb2.Node]:
        """Every node known, lost ones included until they are forgotten."""
        ...
