"""The nodes that this controller knows. Pure: facts and the time in, changes out.

    link     entered when                                     left when
    linked   a Hello was accepted                             stream ended, lease ran out, or replaced -> lost
    lost     its stream is over                               the same id registers -> linked; LOST_KEPT_S later -> forgotten

A node that registers again gets a new generation; whatever still arrives under the old one is ignored. Credits are the slots
that a node granted less what this controller has in flight there, so they cannot be overspent here.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field

from shoal.proto.v1 import link_pb2, node_pb2

LOST_KEPT_S = 600.0
"""A lost node stays visible this long."""

MAX_LOST_NODES = 1024
"""Lost nodes kept at most; the longest lost go first."""

MAX_NODES = 16_384
"""Linked nodes at most; more are turned away and asked to come back."""

MAX_DETAIL = 2048
"""Characters kept of a node's detail (usually why its engine failed); the rest is cut off."""

SERVICE_WEIGHT = 0.2
"""Weight of the newest request in the moving mean of a node's seconds a token."""


class LinkStatus(enum.Enum):
    """Whether the node's stream stands."""

    LINKED = "linked"
    LOST = "lost"


@dataclass(slots=True, eq=False)
class NodeEntry:
    """One node. Only the registry writes it. Instants are monotonic seconds."""

    id: str
    generation: int
    state: node_pb2.NodeState
    connected_at: float
    last_seen_at: float
    link: LinkStatus = LinkStatus.LINKED
    is_leaving: bool = False
    lost_at: float | None = None
    heartbeat: link_pb2.Heartbeat | None = None
    """The newest of this generation. A lost node keeps none: what it measured is no longer true."""
    in_flight: int = 0
    """Credits spent: choices sent there and not ended."""
    requests_total: int = 0
    """Requests that ended there, whatever the reason, over all generations."""
    seconds_per_token: float | None = None
    """Moving mean of decode seconds a token, from requests that ended there."""
    picked_turn: int = 0
    """The turn at which the router last chose this node: ties go to the one that waited longest."""
    version: int = 0

    @property
    def is_ready(self) -> bool:
        """Linked, its engine serves, and it takes new work."""
        return self.link is LinkStatus.LINKED and not self.is_leaving and self.state.phase == node_pb2.NODE_PHASE_READY

    @property
    def credits(self) -> int:
        """Choices that may still be sent there now."""
        return max(0, self.state.slots - self.in_flight) if self.is_ready else 0

    @property
    def model_name(self) -> str:
        return self.state.model.name


@dataclass(frozen=True, slots=True)
class Registered:
    """`replaced` is the generation whose stream must end, where the id was linked already."""

    entry: NodeEntry
    replaced: int | None


@dataclass(slots=True)
class Changes:
    """What moved between two versions."""

    version: int
    changed: list[NodeEntry] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


class FleetFull(Exception):
    """MAX_NODES are linked already."""


class Registry:
    """See the table above. `version` grows with every change: who remembers it can ask what has moved since."""

    def __init__(self, max_nodes: int = MAX_NODES) -> None:
        self.version = 0
        self._max_nodes = max_nodes
        self._entries: dict[str, NodeEntry] = {}
        self._ready: dict[str, dict[str, NodeEntry]] = {}
        # Those of `_ready` that have credits, by and large the one not chosen for longest first.
        self._free: dict[str, dict[str, NodeEntry]] = {}
        # The longest lost first: a dictionary keeps the order in which they came.
        self._lost: dict[str, NodeEntry] = {}
        self._generations = 0
        self._turns = 0

    # --- asking ---

    def __iter__(self) -> Iterator[NodeEntry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, node_id: str) -> NodeEntry | None:
        """The node, linked or lost; None when it is unknown or forgotten."""
        return self._entries.get(node_id)

    def current(self, node_id: str, generation: int) -> NodeEntry | None:
        """The node if it is linked and `generation` is its newest."""
        entry = self._entries.get(node_id)
        if entry is None or entry.generation != generation or entry.link is not LinkStatus.LINKED:
            return None
        return entry

    def ready(self, model: str) -> Iterable[NodeEntry]:
        """Nodes that serve the model now."""
        return self._ready.get(model, {}).values()

    def free(self, model: str, node_id: str | None = None) -> Iterable[NodeEntry]:
        """Nodes that serve the model now and have a credit; only `node_id` where one is pinned. Not to be kept: it changes."""
        nodes = self._free.get(model, {})
        if node_id is None:
            return nodes.values()
        return [nodes[node_id]] if node_id in nodes else []

    def ready_models(self) -> list[str]:
        """Names served now, by parameters, largest first, then by name."""

        def rank(name: str) -> tuple[int, str]:
            one = next(iter(self._ready[name].values()))  # nodes of one name serve one model
            return (-one.state.model.num_parameters, name)

        return sorted(self._ready, key=rank)

    def knows_model(self, model: str) -> bool:
        """Whether any node serves it, loads it, or did before it was lost."""
        return model in self._ready or any(entry.model_name == model for entry in self._entries.values())

    def changes_since(self, version: int, known: Set[str]) -> Changes:
        """Nodes whose newest change is later than `version`, and ids of `known` that are no more."""
        changed = sorted((e for e in self._entries.values() if e.version > version), key=lambda e: e.version)
        return Changes(self.version, changed, sorted(known - self._entries.keys()))

    # --- what agents say ---

    def register(self, node_id: str, state: node_pb2.NodeState, now: float) -> Registered:
        """A Hello was accepted. Raises FleetFull."""
        before = self._entries.get(node_id)
        replaced: int | None = None
        if before is not None and before.link is LinkStatus.LINKED:
            replaced = before.generation
            self.lose(node_id, before.generation, now)
        if len(self._entries) - len(self._lost) >= self._max_nodes:
            raise FleetFull
        self._generations += 1
        entry = NodeEntry(node_id, self._generations, _copied(state), connected_at=now, last_seen_at=now)
        if before is not None:
            entry.requests_total = before.requests_total
            entry.seconds_per_token = before.seconds_per_token
            entry.picked_turn = before.picked_turn
        self._entries[node_id] = entry
        self._lost.pop(node_id, None)
        self._touch(entry)
        return Registered(entry, replaced)

    def observe(self, node_id: str, generation: int, now: float) -> None:
        """A frame came: the lease is young again. Not a change that watchers hear of."""
        entry = self.current(node_id, generation)
        if entry is not None:
            entry.last_seen_at = now

    def beat(self, node_id: str, generation: int, heartbeat: link_pb2.Heartbeat) -> None:
        """The newest measurements."""
        entry = self.current(node_id, generation)
        if entry is not None:
            entry.heartbeat = heartbeat
            self._touch(entry)

    def set_state(self, node_id: str, generation: int, state: node_pb2.NodeState) -> None:
        """The node's state is another."""
        entry = self.current(node_id, generation)
        if entry is not None:
            self._unindex(entry)
            entry.state = _copied(state)
            self._touch(entry)

    def set_leaving(self, node_id: str, generation: int) -> None:
        """The agent said that it goes: no new work."""
        entry = self.current(node_id, generation)
        if entry is not None:
            self._unindex(entry)
            entry.is_leaving = True
            self._touch(entry)

    def lose(self, node_id: str, generation: int, now: float) -> bool:
        """The stream of this generation is over. False when that was known."""
        entry = self.current(node_id, generation)
        if entry is None:
            return False
        self._unindex(entry)
        entry.link = LinkStatus.LOST
        entry.lost_at = now
        entry.heartbeat = None
        entry.in_flight = 0
        self._lost[node_id] = entry
        self._touch(entry)
        self.forget(now)
        return True

    def forget(self, now: float) -> None:
        """Drop nodes lost for LOST_KEPT_S, and the longest lost beyond MAX_LOST_NODES."""
        while self._lost:
            node_id, entry = next(iter(self._lost.items()))
            if len(self._lost) <= MAX_LOST_NODES and now - (entry.lost_at or 0.0) < LOST_KEPT_S:
                return
            del self._lost[node_id]
            del self._entries[node_id]
            self.version += 1

    # --- what dispatch does ---

    def spend(self, entry: NodeEntry, credits: int) -> None:
        """Send `credits` choices there."""
        self._turns += 1
        entry.picked_turn = self._turns
        entry.in_flight += credits
        self._free.get(entry.model_name, {}).pop(entry.id, None)  # to stand at the end, if it comes back in at all
        self._touch(entry)

    def give_back(self, node_id: str, generation: int, credits: int) -> None:
        """Those choices have ended. A lost generation has no credits to give back."""
        entry = self.current(node_id, generation)
        if entry is not None:
            entry.in_flight = max(0, entry.in_flight - credits)
            self._touch(entry)

    def count_request(self, node_id: str, decode_s: float, num_tokens: int) -> None:
        """A request ended there; with enough tokens its speed enters the node's mean."""
        entry = self._entries.get(node_id)
        if entry is None:
            return
        entry.requests_total += 1
        if num_tokens > 1 and decode_s > 0:
            newest = decode_s / num_tokens
            mean = entry.seconds_per_token
            entry.seconds_per_token = newest if mean is None else mean + SERVICE_WEIGHT * (newest - mean)
        self._touch(entry)

    # --- books ---

    def _touch(self, entry: NodeEntry) -> None:
        self.version += 1
        entry.version = self.version
        if entry.is_ready:
            self._ready.setdefault(entry.model_name, {})[entry.id] = entry
            free = self._free.setdefault(entry.model_name, {})
            if entry.credits:
                free[entry.id] = entry
            else:
                free.pop(entry.id, None)

    def _unindex(self, entry: NodeEntry) -> None:
        for index in (self._ready, self._free):
            served = index.get(entry.model_name)
            if served is not None:
                served.pop(entry.id, None)
        if not self._ready.get(entry.model_name):
            self._ready.pop(entry.model_name, None)
            self._free.pop(entry.model_name, None)


def _copied(state: node_pb2.NodeState) -> node_pb2.NodeState:
    own = node_pb2.NodeState()
    own.CopyFrom(state)
    own.detail = own.detail[:MAX_DETAIL]
    return own
