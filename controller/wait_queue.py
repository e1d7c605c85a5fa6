"""Requests that wait for a credit, first come, first served. Pure: nodes in, placements out.

A request that cannot be placed keeps the nodes that it could use for itself: nobody behind it takes a credit there, so that one
which needs several credits is not overtaken for ever. Requests for other nodes or models pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .registry import NodeEntry
from .router import Choice, Wanted, can_serve, pick


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """One request in the queue. `number` orders them."""

    number: int
    wanted: Wanted
    since: float


class QueueFull(Exception):
    """`max_waiting` requests wait already."""


class WaitQueue:
    """See above. The caller spends the credits of each placement before it asks for the next."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._waiting: dict[int, Waiting] = {}
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, wanted: Wanted, now: float) -> Waiting:
        """Stand at the end. Raises QueueFull."""
        if len(self._waiting) >= self._max_waiting:
            raise QueueFull
        self._numbers += 1
        waiting = Waiting(self._numbers, wanted, now)
        self._waiting[waiting.number] = waiting
        return waiting

    def leave(self, waiting: Waiting) -> None:
        """Gone, placed or not. Safe to call twice."""
        self._waiting.pop(waiting.number, None)

    def place(self, free: Callable[[str, str | None], Iterable[NodeEntry]]) -> Iterator[tuple[Waiting, Choice]]:
        """Everyone who can be placed now, in order; they have left the queue when they are yielded.

        `free` gives the nodes with credits by model and pinned node, as `Registry.free` does.
        """
        taken: set[str] = set()
        full: set[str] = set()  # models in which nobody behind can be placed
        for waiting in list(self._waiting.values()):
            wanted = waiting.wanted
            if wanted.model in full:
                continue
            choice = pick(wanted, free(wanted.model, wanted.node_id), taken)
            if choice is not None:
                self.leave(waiting)
                yield waiting, choice
                continue
            taken.update(entry.id for entry in free(wanted.model, wanted.node_id) if can_serve(wanted, entry))
            if all(entry.id in taken for entry in free(wanted.model, None)):
                full.add(wanted.model)
