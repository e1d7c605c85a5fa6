"""The admin routes and the console over a scripted fleet."""

from __future__ import annotations

import re

import pytest
from shoal_fake_backend import FakeBackend, FakeLog, connected, ready_node

from shoal.controller.console_format import Rates, duration, number, size, watts
from shoal.controller.request_record import RequestRecord
from shoal.proto.v1 import fleet_pb2, node_pb2

RECORD = RequestRecord(
    id="q-1", model="tiny", node="node-1", attempts=1, finish_reason="stop", error_code=None, prompt_tokens=10,
    completion_tokens=5, cached_tokens=4, received_at=1_700_000_000.0, total_s=1.5, queue_s=0.1, prefill_s=0.2,
    ttft_s=0.3, decode_s=1.2,
)  # fmt: skip
FAILED = RequestRecord(
    id="q-2", model="tiny", node="controller", attempts=0, finish_reason="error", error_code="no_capacity",
    prompt_tokens=0, completion_tokens=0, cached_tokens=0, received_at=1_700_000_001.0, total_s=60.0,
)  # fmt: skip


def lost_node(node_id: str) -> fleet_pb2.Node:
    node = ready_node(node_id)
    node.link = "lost"
    return node


async def test_nodes_show_everything_and_nothing_unknown_as_zero() -> None:
    bare = fleet_pb2.Node(id="bare", link="linked")
    bare.state.phase = node_pb2.NODE_PHASE_LOADING
    watched = ready_node("watched", rtt_s=0.004)
    watched.power.add(domain="package", provenance="rapl", watts=12.5)
    async with connected(FakeBackend(fleet=[bare, lost_node("gone"), watched])) as client:
        nodes = {node["id"]: node for node in (await client.get("/admin/v1/nodes")).json()["nodes"]}
        shown = (await client.get("/admin/v1/nodes/watched")).json()
        missing = await client.get("/admin/v1/nodes/nobody")
    assert shown == nodes["watched"]
    assert {name: shown[name] for name in ("state", "pid", "engine_pid", "model", "credits", "in_flight", "running")} == {
        "state": "ready", "pid": 100, "engine_pid": 101, "model": "tiny", "credits": 3, "in_flight": 1, "running": 1,
    }  # fmt: skip
    assert (shown["format"], shown["backend"], shown["isa"]) == ("int8", "cpu", "avx2")
    assert (shown["source_digest"], shown["serving_digest"]) == ("s1", "s2")
    assert shown["planned_bytes"] == {"weights": 3_000_000, "kv": 1_000_000}
    assert (shown["planned_total_bytes"], shown["resident_bytes"]) == (4_000_000, 5_000_000)
    assert shown["power"] == [{"domain": "package", "provenance": "rapl", "watts": 12.5, "joules_total": None}]
    assert nodes["gone"]["state"] == "lost"
    for name in (
        "pid",
        "engine_pid",
        "model",
        "isa",
        "running",
        "rtt_s",
        "resident_bytes",
        "planned_total_bytes",
        "hardware",
    ):
        assert nodes["bare"][name] is None
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "node_not_found"


async def test_requests_are_listed_and_shown() -> None:
    async with connected(FakeBackend(), FakeLog(FAILED, RECORD)) as client:
        listed = (await client.get("/admin/v1/requests")).json()["requests"]
        assert [row["id"] for row in listed] == ["q-2", "q-1"]
        shown = (await client.get("/admin/v1/requests/q-1")).json()
        assert shown == listed[1]
        assert (shown["completion_tokens"], shown["ttft_s"], listed[0]["ttft_s"]) == (5, 0.3, None)
        assert len((await client.get("/admin/v1/requests?limit=1")).json()["requests"]) == 1
        for limit in ("0", "-1", "1001", "x", "9" * 5000):
            refused = await client.get("/admin/v1/requests", params={"limit": limit})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "limit")
        missing = await client.get("/admin/v1/requests/none")
        assert missing.status_code == 404 and missing.json()["error"]["code"] == "request_not_found"


async def test_the_console_is_complete_without_scripts() -> None:
    fleet = [ready_node("node-1", rtt_s=0.002), lost_node("node-2")]
    async with connected(FakeBackend(fleet=fleet), FakeLog(RECORD, FAILED)) as client:
        root = await client.get("/")
        page = await client.get("/console")
        live = await client.get("/console/live")
    assert (root.status_code, root.headers["location"]) == (302, "/console")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for text in (
        "node-1",
        "ready",
        "lost",
        "tiny",
        "1 / 4",
        "int8 · cpu · avx2",
        "3.81 MiB",
        "2 ms",
        "q-1",
        "no_capacity",
        "1.2.3",
    ):
        assert text in page.text
    assert '<meta http-equiv="refresh"' in page.text
    assert 'lang="en"' in page.text and '<th scope="col">' in page.text
    assert live.text.strip() in page.text


async def test_the_console_runs_nothing_but_its_own_files() -> None:
    async with connected(FakeBackend()) as client:
        page = await client.get("/console")
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy
        assert not re.search(r"<script(?![^>]*src=)|\sstyle=|\son\w+=|https?://", page.text)
        for path in re.findall(r'(?:src|href)="(/console/static/[^"]+)"', page.text):
            file = await client.get(path)
            assert file.status_code == 200 and file.headers["x-content-type-options"] == "nosniff"
            assert "immutable" in file.headers["cache-control"]
        for name in ("nothing.js", "..%2Fgateway.py", "%2e%2e/console.py"):
            assert (await client.get(f"/console/static/{name}")).status_code == 404


async def test_what_nodes_say_is_text() -> None:
    hostile = ready_node('<script>alert("x")</script>')
    hostile.state.detail = "<img src=x onerror=alert(1)>"
    hostile.state.model.name = "</td><b>"
    async with connected(FakeBackend(fleet=[hostile])) as client:
        page = await client.get("/console")
    assert "<script>alert" not in page.text and "<img src=x" not in page.text and "</td><b>" not in page.text
    assert "&lt;img src=x" in page.text


async def test_an_empty_fleet_says_what_to_do() -> None:
    async with connected(FakeBackend(fleet=[])) as client:
        page = await client.get("/console")
    assert "No agent is linked yet" in page.text and "None yet." in page.text


async def test_a_fleet_of_thousands_is_cut_and_says_so() -> None:
    fleet = [ready_node(f"node-{number:04}") for number in range(1200)]
    fleet[777].state.phase = node_pb2.NODE_PHASE_FAILED
    async with connected(FakeBackend(fleet=fleet)) as client:
        page = await client.get("/console")
    assert "700 more are not shown" in page.text
    # What needs a look comes first.
    assert page.text.index("node-0777") < page.text.index("node-0000")


def test_rates_come_from_counters() -> None:
    rates = Rates()
    assert rates.observe({"a": 100, "b": None}, 10.0) == {}
    assert rates.observe({"a": 150}, 10.4) == {}
    assert rates.observe({"a": 200}, 12.0) == {"a": 50.0}
    assert rates.observe({"a": 900}, 12.5) == {"a": 50.0}
    assert rates.observe({"a": 300}, 14.0) == {"a": 50.0}
    assert rates.observe({"a": 0}, 16.0) == {}, "a restarted agent counts anew"
    assert rates.observe({"a": 10}, 18.0) == {"a": 5.0}
    assert rates.observe({"a": 500}, 118.0) == {}, "long ago says nothing about now"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (number(None), "—"), (number(0), "0"), (number(12.345), "12.3"), (number(1234.5), "1,234"),
        (size(None), "—"), (size(0), "0 B"), (size(1536), "1.5 KiB"), (size(5 * 2**30), "5 GiB"),
        (duration(None), "—"), (duration(0.0004), "0.40 ms"), (duration(0.25), "250 ms"), (duration(1.5), "1.5 s"),
        (duration(125), "2 min 05 s"), (duration(7260), "2 h 01 min"), (watts(None), "—"), (watts(12.34), "12.3 W"),
    ],
)  # fmt: skip
def test_numbers_as_people_read_them(found: str, expected: str) -> None:
    assert found == expected
