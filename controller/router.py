"""Which node takes a request. Pure: the nodes in, a choice and its reasons out.

In this order: able (serves the model, the pinned node where one is pinned, its context holds the request where the length is
known, a free credit for each choice) -> least predicted wait -> the node that was not chosen for longest.

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

MAX_CONSIDERED = 16
"""Nodes compared for one request."""

DEFAULT_SECONDS_PER_TOKEN = 0.05
"""Taken for a fleet in which nothing has been measured yet; only ratios matter."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request needs. `min_context` is prompt and answer together in tokens, 0 when it is not known before rendering."""

    model: str
    num_choices: int = 1
    node_id: str | None = None
    min_context: int = 0
    is_part: bool = False
    """See `GenerateOptions.is_part`; carried along for the record at the end."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`credits` is what the request spends there: a choice each, at most the node's slots."""

    node: NodeEntry
    credits: int
    predicted_wait_s: float
    reasons: tuple[str, ...]


def can_serve(wanted: Wanted, entry: NodeEntry) -> bool:
    """Whether the node could take the request if it had the credits."""
    return (
        entry.is_ready
        and entry.model_name == wanted.model
        and (wanted.node_id is None or entry.id == wanted.node_id)
        and entry.state.model.max_model_len >= wanted.min_context
    )


def pick(wanted: Wanted, free: Iterable[NodeEntry], taken: Set[str] = frozenset()) -> Choice | None:
    """The best node with enough credits outside `taken` (nodes that an earlier request waits for); None when there is none.

    `free` are nodes with credits, the one not chosen for longest first; only the first MAX_CONSIDERED that will do are compared,
    so that a choice costs the same in a fleet of any size.
    """
    nodes: list[NodeEntry] = []
    for entry in free:
        if entry.id not in taken and can_serve(wanted, entry) and entry.credits >= credits_needed(wanted, entry):
            nodes.append(entry)
            if len(nodes) == MAX_CONSIDERED:
                break
    if not nodes:
        return None
    measured = [entry.seconds_per_token for entry in nodes if entry.seconds_per_token is not None]
    # A node without a measure is tried as if it were average: it neither starves nor draws everything.
    unknown = sum(measured) / len(measured) if measured else DEFAULT_SECONDS_PER_TOKEN
    waits = [predicted_wait_s(entry, credits_needed(wanted, entry), unknown) for entry in nodes]
    best = min(range(len(nodes)), key=lambda i: (_step(waits[i]), nodes[i].picked_turn, nodes[i].id))
    entry, wait_s = nodes[best], waits[best]
    reasons = (
        "the node was pinned" if wanted.node_id else f"{len(nodes)} node(s) that serve {wanted.model} had the credits",
        f"least predicted wait, {wait_s:.4f} s a token at load {load(entry)} of {entry.state.slots} slots",
        "among equals the one not chosen for longest",
    )
    return Choice(entry, credits_needed(wanted, entry), wait_s, reasons)


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
