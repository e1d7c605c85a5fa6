"""Which node takes a request. Pure: the nodes in, a choice and its reasons out.

In this order: capable (serves the model, the pinned node where one is pinned, its context holds the request where the length is
known, a free credit) -> least predicted wait -> the node that was not chosen for longest.

The predicted wait is the node's seconds a token times how full its slots would be. Waits within a factor of WAIT_STEP count as
equal, so that noise in a measured speed does not send everything to one of two equal machines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Set
from dataclasses import dataclass

from .registry import NodeEntry

WAIT_STEP = 1.3
"""Predicted waits whose ratio is below this are taken for equal (they share a step of a logarithmic scale)."""

DEFAULT_SECONDS_PER_TOKEN = 0.05
"""Taken for a fleet in which nothing has been measured yet; only ratios matter."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request needs. `min_context` is prompt and answer together in tokens, 0 when it is not known before rendering."""

    model: str
    num_choices: int = 1
    node_id: str | None = None
    min_context: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """`credits` is what the request spends there: a choice each, at most the node's slots."""

    node: NodeEntry
    credits: int
    predicted_wait_s: float
    reasons: tuple[str, ...]


def capable(wanted: Wanted, ready: Iterable[NodeEntry]) -> list[NodeEntry]:
    """Nodes that could take the request if they had a credit.

    When no context is large enough all are returned: the engine refuses with the exact numbers.
    """
    serving = [
        entry
        for entry in ready
        if entry.is_ready
        and entry.model_name == wanted.model
        and entry.state.slots > 0
        and (wanted.node_id is None or entry.id == wanted.node_id)
    ]
    roomy = [entry for entry in serving if entry.state.model.max_model_len >= wanted.min_context]
    return roomy or serving


def pick(wanted: Wanted, ready: Iterable[NodeEntry], taken: Set[str] = frozenset()) -> Choice | None:
    """The best node with enough credits outside `taken` (nodes that an earlier request waits for); None when all are full."""
    nodes = capable(wanted, ready)
    measured = [entry.seconds_per_token for entry in nodes if entry.seconds_per_token is not None]
    # A node without a measure is tried as if it were average: it neither starves nor draws everything.
    unknown = sum(measured) / len(measured) if measured else DEFAULT_SECONDS_PER_TOKEN
    best: tuple[tuple[int, int, str], NodeEntry, int, float] | None = None
    num_free = 0
    for entry in nodes:
        credits = credits_needed(wanted, entry)
        if entry.id in taken or entry.credits < credits:
            continue
        num_free += 1
        wait_s = predicted_wait_s(entry, credits, unknown)
        rank = (_step(wait_s), entry.picked_turn, entry.id)
        if best is None or rank < best[0]:
            best = (rank, entry, credits, wait_s)
    if best is None:
        return None
    _, entry, credits, wait_s = best
    reasons = (
        f"{len(nodes)} node(s) can serve {wanted.model}" + (" and the node was pinned" if wanted.node_id else ""),
        f"{num_free} of them with {credits} free credit(s) or more",
        f"least predicted wait, {wait_s:.4f} s a token at load {load(entry)} of {entry.state.slots} slots",
        "among equals the one not chosen for longest",
    )
    return Choice(entry, credits, wait_s, reasons)


def credits_needed(wanted: Wanted, entry: NodeEntry) -> int:
    """A choice each; more choices than slots take turns in the engine."""
    return min(wanted.num_choices, entry.state.slots)


def load(entry: NodeEntry) -> int:
    """Sequences there: what this controller sent, or what the node itself reports if that is more (others send too)."""
    stats = entry.heartbeat.stats if entry.heartbeat is not None else None
    return max(entry.in_flight, stats.running + stats.waiting if stats is not None else 0)


def predicted_wait_s(entry: NodeEntry, credits: int, unknown_seconds_per_token: float) -> float:
    """Seconds a token once the request is there: the node's own speed, scaled by how full its slots then are."""
    speed = entry.seconds_per_token if entry.seconds_per_token is not None else unknown_seconds_per_token
    return speed * (load(entry) + credits) / entry.state.slots


def _step(wait_s: float) -> int:
    return math.floor(math.log(max(wait_s, 1e-9)) / math.log(WAIT_STEP))
