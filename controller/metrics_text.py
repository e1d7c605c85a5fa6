"""What nodes reported, as exposition text. Pure: the registry and the time in, lines out.

The client library takes over a second for the series of ten thousand nodes, so these families are written here; both formats,
Prometheus' own and OpenMetrics, which differ in how a counter's family is named. Every family stands once, with all its series.
Absent means not known: a node that reported no histogram, sensor or round trip has no series of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache

from shoal.proto.v1 import link_pb2

from .frame_check import CONTROLLER_NODE_ID
from .node_view import STATE_WORDS, state_word
from .registry import LinkStatus, NodeEntry

PREFIX = "shoal_"


def render_nodes(nodes: Iterable[NodeEntry], num_waiting: int, now: float, *, openmetrics: bool) -> str:
    """All families of this file. `num_waiting` is the controller's own queue."""
    everyone = list(nodes)
    linked = [entry for entry in everyone if entry.link is LinkStatus.LINKED]
    page = _Page(openmetrics)
    _write_agents(page, everyone, now)
    _write_books(page, linked, num_waiting)
    _write_memory_and_power(page, linked)
    return page.text()


class _Page:
    """Families as they are written."""

    def __init__(self, openmetrics: bool) -> None:
        self._openmetrics = openmetrics
        self._parts: list[str] = []

    def family(self, name: str, kind: str, help_text: str, lines: Iterable[str]) -> None:
        """One family, left out when it has no lines. A counter's `name` ends in `_total`, as its lines do."""
        body = "\n".join(lines)
        if not body:
            return
        family = PREFIX + (name.removesuffix("_total") if self._openmetrics else name)
        self._parts.append(f"# HELP {family} {help_text}\n# TYPE {family} {kind}\n{body}\n")

    def text(self) -> str:
        return "".join(self._parts)


def escape(value: str) -> str:
    """A label's value between its quotes."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _write_agents(page: _Page, everyone: list[NodeEntry], now: float) -> None:
    states = Counter(map(state_word, everyone))
    page.family("agents", "gauge", "Nodes by state.", (
        f'shoal_agents{{state="{word}"}} {states[word]}' for word in STATE_WORDS
    ))  # fmt: skip
    page.family("agent_lease_age_seconds", "gauge", "Time since the last frame of the node.", (
        f'shoal_agent_lease_age_seconds{{node="{e.id}"}} {max(0.0, now - e.last_seen_at):.3f}' for e in everyone
    ))  # fmt: skip
    page.family("agent_rtt_seconds", "gauge", "Round trip of a heartbeat as the node measured it.", (
        f'shoal_agent_rtt_seconds{{node="{e.id}"}} {e.heartbeat.rtt_s:.6g}'
        for e in everyone if e.heartbeat is not None and e.heartbeat.HasField("rtt_s")
    ))  # fmt: skip
    page.family("engine_restarts_total", "counter", "Engines started again on the node.", (
        f'shoal_engine_restarts_total{{node="{e.id}"}} {e.heartbeat.engine_restarts}'
        for e in everyone if e.heartbeat is not None
    ))  # fmt: skip


def _write_books(page: _Page, linked: list[NodeEntry], num_waiting: int) -> None:
    books = [(e.id, e.heartbeat.stats) for e in linked if e.heartbeat is not None and e.heartbeat.HasField("stats")]

    def simple(name: str, field: str) -> Iterator[str]:
        return (f'shoal_{name}{{node="{node}"}} {getattr(stats, field)}' for node, stats in books)

    def three_states(name: str) -> Iterator[str]:
        for node, stats in books:
            for state in ("used", "cached", "free"):
                yield f'shoal_{name}{{node="{node}",state="{state}"}} {getattr(stats, f"{name}_{state}")}'

    page.family(
        "requests_running", "gauge", "Sequences that engines decode or prefill.", simple("requests_running", "running")
    )
    page.family("requests_waiting", "gauge", "Requests without a place: in engines, and in the controller's queue.", [
        f'shoal_requests_waiting{{node="{CONTROLLER_NODE_ID}"}} {num_waiting}', *simple("requests_waiting", "waiting"),
    ])  # fmt: skip
    page.family("kv_blocks", "gauge", "Blocks of the attention cache.", three_states("kv_blocks"))
    page.family("state_slots", "gauge", "Slots of the recurrent state.", three_states("state_slots"))
    for name, help_text in (
        ("preemptions", "Sequences that gave their memory back and were computed again."),
        ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
        ("prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    ):
        page.family(f"{name}_total", "counter", help_text, simple(f"{name}_total", name))
    for name, field, help_text in (
        ("engine_step_seconds", "step_s", "One step of an engine."),
        ("engine_host_seconds", "host_s", "Python's share of a step."),
        ("inter_token_latency_seconds", "inter_token_s", "Time between two tokens of a sequence."),
    ):
        histograms = ((node, getattr(stats, field)) for node, stats in books if stats.HasField(field))
        page.family(
            name, "histogram", help_text, (_histogram(name, node, state) for node, state in histograms if state.counts)
        )


def _write_memory_and_power(page: _Page, linked: list[NodeEntry]) -> None:
    page.family("memory_planned_bytes", "gauge", "Memory that the node planned, by pool.", (
        f'shoal_memory_planned_bytes{{node="{e.id}",pool="{escape(pool)}"}} {count}'
        for e in linked for pool, count in sorted(e.state.planned_bytes.items())
    ))  # fmt: skip
    page.family("memory_resident_bytes", "gauge", "Memory resident: the node's agent and its engine.", (
        f'shoal_memory_resident_bytes{{node="{e.id}"}} {resident}'
        for e in linked if e.heartbeat is not None
        and (resident := e.heartbeat.agent_resident_bytes + e.heartbeat.engine_resident_bytes)
    ))  # fmt: skip
    page.family("power_watts", "gauge", "Power of a domain, where the machine has a sensor.", (
        f'shoal_power_watts{{node="{e.id}",domain="{escape(domain)}",provenance="{escape(provenance)}"}} {watts:.6g}'
        for e in linked if e.heartbeat is not None
        # A sensor that is reported twice would be two samples of one series: the last one stands.
        for (domain, provenance), watts in {(r.domain, r.provenance): r.watts for r in e.heartbeat.power}.items()
    ))  # fmt: skip


def _histogram(name: str, node: str, state: link_pb2.HistogramState) -> str:
    """Lines of one node. Counts come a bucket each and leave accumulated, as the format wants them."""
    total = 0
    accumulated = [node]
    for count in state.counts:
        total += count
        accumulated += (str(total), node)
    return _histogram_template(name, tuple(state.bounds)) % (*accumulated, total, node, state.sum)


@lru_cache(maxsize=64)
def _histogram_template(name: str, bounds: tuple[float, ...]) -> str:
    """A line a bucket, then count and sum; node and number are left open. A few kinds of bounds are in use in a fleet."""
    lines = [f'shoal_{name}_bucket{{node="%s",le="{bound!r}"}} %s' for bound in bounds]
    lines += [f'shoal_{name}_bucket{{node="%s",le="+Inf"}} %s']
    lines += [f'shoal_{name}_count{{node="%s"}} %s', f'shoal_{name}_sum{{node="%s"}} %.9g']
    return "\n".join(lines)
