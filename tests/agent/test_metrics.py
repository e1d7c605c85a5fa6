"""The node's page: parsed by the reference parsers, complete by the contract's names, over real HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from shoal.agent.books import Books
from shoal.agent.metrics import NodeMetrics
from shoal.agent.metrics_server import MAX_REQUEST_BYTES, MetricsServer
from shoal.agent.node import Node
from shoal.agent.power import PowerReading
from shoal.agent.telemetry import Sample
from shoal.agent.worker import Worker
from shoal.proto.v1 import node_pb2
from shoal.runtime import wire

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def stats(running: int = 0, tokens: int = 0) -> wire.Stats:
    step = [0] * (len(wire.HISTOGRAM_STEP_S) + 1)
    step[0], step[-1] = 2, 1
    token = [1] * (len(wire.HISTOGRAM_TOKEN_S) + 1)
    return wire.Stats(
        running=running,
        waiting=1,
        kv_blocks_used=2,
        kv_blocks_cached=3,
        kv_blocks_free=4,
        state_slots_used=5,
        state_slots_cached=6,
        state_slots_free=7,
        prompt_tokens=8,
        generation_tokens=tokens,
        preemptions=10,
        prefix_cache_queries=11,
        prefix_cache_hits=12,
        step_s=wire.Histogram(list(step), 20.5),
        host_s=wire.Histogram(list(step), 0.25),
        inter_token_s=wire.Histogram(list(token), 99.0),
    )


def node(tmp_path: Path) -> Node:
    it = Node("n1", node_pb2.Hardware(), "m", {"weights": 100, "kv": 50}, Worker(), tmp_path / "s.json", lambda e: None)
    it.sample = Sample(1000, 2000, 0.5, None, None, (PowerReading("package-0", "counter_model", 12.5, 30.0),))
    it.books.update(stats(running=3, tokens=9))
    return it


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_names_and_values(accept: str, tmp_path: Path) -> None:
    page, content_type = NodeMetrics(node(tmp_path), "1.2").render(accept)
    assert ("openmetrics" in content_type) == bool(accept)
    parse = parse_openmetrics if accept else parse_text
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(page.decode())
        for sample in family.samples
    }
    plain = {name: value for (name, labels), value in samples.items() if not labels}
    assert plain["shoal_requests_running"] == 3 and plain["shoal_requests_waiting"] == 1
    assert plain["shoal_prompt_tokens_total"] == 8 and plain["shoal_generation_tokens_total"] == 9
    assert plain["shoal_preemptions_total"] == 10 and plain["shoal_engine_restarts_total"] == 0
    assert plain["shoal_prefix_cache_queries_total"] == 11 and plain["shoal_prefix_cache_hits_total"] == 12
    assert plain["shoal_memory_resident_bytes"] == 3000 and plain["shoal_cpu_load_ratio"] == 0.5
    assert plain["shoal_engine_step_seconds_count"] == 3 and plain["shoal_engine_step_seconds_sum"] == 20.5
    assert plain["shoal_engine_host_seconds_sum"] == 0.25 and plain["shoal_inter_token_latency_seconds_count"] == 21
    for family, values in (("shoal_kv_blocks", (2, 3, 4)), ("shoal_state_slots", (5, 6, 7))):
        states = ("used", "cached", "free")
        assert tuple(samples[family, (("state", state),)] for state in states) == values
    assert samples["shoal_memory_planned_bytes", (("pool", "weights"),)] == 100
    assert samples["shoal_power_watts", (("domain", "package-0"), ("provenance", "counter_model"))] == 12.5
    assert samples["shoal_engine_step_seconds_bucket", (("le", "0.0005"),)] == 2
    assert samples["shoal_engine_step_seconds_bucket", (("le", "10.0"),)] == 2
    assert samples["shoal_engine_step_seconds_bucket", (("le", "+Inf"),)] == 3
    assert any(name == "shoal_build_info" and ("version", "1.2") in labels for name, labels in samples)


def test_what_is_not_known_has_no_sample(tmp_path: Path) -> None:
    it = Node("n1", node_pb2.Hardware(), "m", {}, Worker(), None, lambda e: None)
    page = NodeMetrics(it, "1").render("")[0].decode()
    for absent in ("power", "battery", "requests_running", "resident", "cpu_load", "energy"):
        assert f"shoal_{absent}" not in page
    it.sample = Sample(1000, None, None, None, None, ())
    page = NodeMetrics(it, "1").render("")[0].decode()
    assert "shoal_memory_resident_bytes 1000.0" in page and "shoal_power" not in page and "shoal_cpu" not in page


def test_books_survive_their_engines() -> None:
    books = Books()
    assert books.total() is None
    books.engine_lost()
    assert books.total() is None
    assert books.update(stats(running=2, tokens=5))
    assert not books.update(stats(running=2, tokens=6)), "only gauges are news"
    assert books.update(stats(running=1, tokens=7))
    books.engine_lost()
    total = books.total()
    assert total is not None and (total.running, total.kv_blocks_free, total.generation_tokens) == (0, 0, 7)
    books.update(stats(running=4, tokens=3))
    total = books.total()
    assert total is not None and (total.running, total.generation_tokens, total.prompt_tokens) == (4, 10, 16)
    assert total.step_s == wire.Histogram([4, *[0] * (len(wire.HISTOGRAM_STEP_S) - 1), 2], 41.0)
    books.engine_lost()
    books.engine_lost()
    total = books.total()
    assert total is not None and total.generation_tokens == 10


async def ask(url: str, request: bytes) -> bytes:
    host, port = url.removeprefix("http://").removesuffix("/metrics").rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /metrics HTTP/1.1", b"200 OK"),
        (b"HEAD /metrics HTTP/1.1", b"200 OK"),
        (b"GET /metrics?x=1 HTTP/1.0", b"200 OK"),
        (b"GET /healthz HTTP/1.1", b"200 OK"),
        (b"GET / HTTP/1.1", b"404 Not Found"),
        (b"POST /metrics HTTP/1.1", b"405 Method Not Allowed"),
        (b"nonsense", b"400 Bad Request"),
        (b"GET /" + b"x" * MAX_REQUEST_BYTES + b" HTTP/1.1", b"431 Request Header Fields Too Large"),
    ],
)
async def test_the_page_over_http(request_line: bytes, status: bytes, tmp_path: Path) -> None:
    metrics = NodeMetrics(node(tmp_path), "1")
    async with MetricsServer(metrics.render).listen("127.0.0.1", 0) as url:
        answer = await ask(url, request_line + b"\r\nHost: x\r\nAccept: " + OPENMETRICS.encode() + b"\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    if status == b"200 OK" and b"healthz" not in request_line:
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert b"openmetrics" in head and length > 1000
        assert len(body) == (0 if request_line.startswith(b"HEAD") else length)


async def test_the_status_file_is_rewritten_on_change_only(tmp_path: Path) -> None:
    it = node(tmp_path)
    it.changed()
    first = (tmp_path / "s.json").stat().st_mtime_ns
    it.on_link_changed()
    assert (tmp_path / "s.json").stat().st_mtime_ns == first
    it.leave()
    assert '"phase": "draining"' in (tmp_path / "s.json").read_text()


def test_a_status_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told: list[OSError] = []
    it = Node("n1", node_pb2.Hardware(), "m", {}, Worker(), tmp_path / "file" / "s.json", told.append)
    it.changed()
    assert len(told) == 1
