"""The page parses in both formats, says what happened and nothing that is not known, and does so for a large fleet."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from shoal_fake_fleet import ready_state

from shoal.controller.metrics import Metrics
from shoal.controller.metrics_text import escape, render_nodes
from shoal.controller.registry import NodeEntry, Registry
from shoal.controller.request_record import RequestRecord
from shoal.proto.v1 import link_pb2, node_pb2

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
BOUNDS = (0.0005, 0.01, 0.1, 1.0, 10.0)


def record(**fields: Any) -> RequestRecord:
    defaults: dict[str, Any] = {
        "id": "r", "model": "tiny", "node": "n1", "attempts": 1, "finish_reason": "stop", "error_code": None, "prompt_tokens": 3,
        "completion_tokens": 4, "cached_tokens": 0, "received_at": 0.0, "total_s": 0.5, "queue_s": 0.01, "prefill_s": 0.1, "ttft_s": 0.12, "decode_s": 0.3,
    }  # fmt: skip
    return RequestRecord(**(defaults | fields))


def heartbeat(**fields: Any) -> link_pb2.Heartbeat:
    histogram = link_pb2.HistogramState(bounds=BOUNDS, counts=[1, 2, 0, 0, 0, 3], sum=31.5)
    stats = link_pb2.EngineStats(
        running=1, waiting=2, kv_blocks_used=3, kv_blocks_cached=4, kv_blocks_free=5, state_slots_used=1, state_slots_free=7,
        preemptions=6, step_s=histogram, host_s=histogram, inter_token_s=histogram,
    )  # fmt: skip
    return link_pb2.Heartbeat(
        sequence=1, stats=stats, agent_resident_bytes=10, engine_resident_bytes=20, engine_restarts=2, **fields
    )


def fleet(registry: Registry, node_id: str = "n1", beat: link_pb2.Heartbeat | None = None) -> NodeEntry:
    entry = registry.register(node_id, ready_state(), 0.0).entry
    if beat is not None:
        registry.beat(node_id, entry.generation, beat)
    return entry


def samples(page: bytes, content_type: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    parse = parse_openmetrics if "openmetrics" in content_type else parse_text
    found = [s for family in parse(page.decode()) for s in family.samples]
    by_key = {(s.name, tuple(sorted(s.labels.items()))): s.value for s in found}
    assert len(by_key) == len(found), "a series stands twice"
    return by_key


@pytest.fixture
async def registry() -> Registry:
    return Registry()


@pytest.mark.parametrize("accept", ["", "text/plain", OPENMETRICS, "*/*"])
async def test_both_formats_parse_and_tell_the_same(registry: Registry, accept: str) -> None:
    power = [node_pb2_reading("package", 12.5), node_pb2_reading("package", 13.5)]
    fleet(registry, beat=heartbeat(rtt_s=0.002, power=power))
    lost = fleet(registry, "gone", heartbeat())
    registry.lose("gone", lost.generation, 1.0)
    metrics = Metrics(registry, lambda: 5, "1.2.3")
    metrics.record(record())
    metrics.record(record(id="r2", finish_reason="abort", ttft_s=None, queue_s=None, prefill_s=None, decode_s=None))
    metrics.refuse("queue_full")
    page, content_type = metrics.render(accept)
    assert content_type.startswith("application/openmetrics-text" if accept == OPENMETRICS else "text/plain")
    found = samples(page, content_type)

    def value(name: str, **labels: str) -> float | None:
        return found.get((f"shoal_{name}", tuple(sorted(labels.items()))))

    assert value("requests_total", model="tiny", node="n1", finish_reason="stop") == 1
    assert value("requests_total", model="tiny", node="n1", finish_reason="abort") == 1
    assert value("prompt_tokens_total", model="tiny", node="n1") == 6
    assert value("generation_tokens_total", model="tiny", node="n1") == 8
    assert value("admission_rejections_total", reason="queue_full") == 1
    assert value("build_info", version="1.2.3") == 1
    assert value("time_to_first_token_seconds_count", model="tiny") == 1
    assert value("e2e_request_latency_seconds_sum", model="tiny") == 1
    assert value("request_decode_seconds_bucket", model="tiny", le="0.3") == 1
    assert value("requests_running", node="n1") == 1
    assert value("requests_waiting", node="n1") == 2 and value("requests_waiting", node="controller") == 5
    assert [value("kv_blocks", node="n1", state=state) for state in ("used", "cached", "free")] == [3, 4, 5]
    assert [value("state_slots", node="n1", state=state) for state in ("used", "cached", "free")] == [1, 0, 7]
    assert value("preemptions_total", node="n1") == 6 and value("engine_restarts_total", node="n1") == 2
    buckets = [value("engine_step_seconds_bucket", node="n1", le=le) for le in ("0.0005", "0.01", "10.0", "+Inf")]
    assert buckets == [1, 3, 3, 6]
    assert value("engine_step_seconds_count", node="n1") == 6 and value("engine_step_seconds_sum", node="n1") == 31.5
    assert (
        value("agents", state="ready") == 1
        and value("agents", state="lost") == 1
        and value("agents", state="loading") == 0
    )
    assert value("agent_rtt_seconds", node="n1") == 0.002
    assert value("agent_lease_age_seconds", node="n1") is not None
    assert value("memory_resident_bytes", node="n1") == 30
    assert value("power_watts", node="n1", domain="package", provenance="counter") == 13.5
    assert not any(name.endswith("_created") for name, _ in found)
    # A lost node keeps its place among the agents, and nothing that it measured.
    assert {name for name, labels in found if ("node", "gone") in labels} == {"shoal_agent_lease_age_seconds"}


def node_pb2_reading(domain: str, watts: float) -> link_pb2.PowerReading:
    return link_pb2.PowerReading(domain=domain, provenance="counter", watts=watts)


async def test_what_is_not_known_is_absent(registry: Registry) -> None:
    fleet(registry)
    fleet(registry, "n2", link_pb2.Heartbeat(sequence=1))
    page, content_type = Metrics(registry, lambda: 0, "1").render(OPENMETRICS)
    names = {name for name, _ in samples(page, content_type)}
    assert not names & {
        "shoal_power_watts", "shoal_agent_rtt_seconds", "shoal_kv_blocks", "shoal_memory_resident_bytes",
        "shoal_engine_step_seconds_count", "shoal_requests_running", "shoal_energy_joules_total",
    }  # fmt: skip


async def test_labels_are_bounded_and_escaped(registry: Registry) -> None:
    assert escape('a"b\\c\nd') == 'a\\"b\\\\c\\nd'
    entry = fleet(registry)
    odd = 'po"ol\\ \n'
    registry.set_state("n1", entry.generation, node_pb2.NodeState(planned_bytes={odd: 7}))
    metrics = Metrics(registry, lambda: 0, "1", max_models=3)
    for number in range(13):
        metrics.record(record(id=f"r{number}", model=f"m{number}"))
    page, content_type = metrics.render(OPENMETRICS)
    found = samples(page, content_type)
    assert found["shoal_memory_planned_bytes", (("node", "n1"), ("pool", odd))] == 7
    assert found["shoal_requests_total", (("finish_reason", "stop"), ("model", "other"), ("node", "n1"))] == 10


def test_ten_thousand_nodes_make_a_valid_page() -> None:
    registry = Registry()
    # The parser takes a quarter of a minute for the books of all; those of some are as telling.
    plain, full = link_pb2.Heartbeat(sequence=1, rtt_s=0.001, agent_resident_bytes=1), heartbeat(rtt_s=0.001)
    for number in range(10_000):
        fleet(registry, f"node-{number}", full if number % 100 == 0 else plain)
    page = render_nodes(registry, 0, 1.0, openmetrics=True) + "# EOF\n"
    found = samples(page.encode(), OPENMETRICS)
    assert sum(name == "shoal_agent_rtt_seconds" for name, _ in found) == 10_000
    assert sum(value for (name, _), value in found.items() if name == "shoal_requests_running") == 100
    assert sum(name == "shoal_engine_step_seconds_count" for name, _ in found) == 100
