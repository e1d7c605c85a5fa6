"""What a fleet does when one of its processes, or a client, is killed in the middle of an answer."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from shoal_e2e_fleet import Fleet, is_alive, running_fleet, stream_events, wait_for  # type: ignore[import-not-found]

pytestmark = pytest.mark.e2e

LONG = {"model": "auto", "prompt": "a", "max_tokens": 8000, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("faults") / "home") as fleet:
        yield fleet


class LongStream(threading.Thread):
    """A streamed answer of thousands of tokens, read in a thread."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self.fleet = fleet
        self.events: list[dict[str, Any] | None] = []
        self.started = threading.Event()
        self.ended_at = 0.0

    def run(self) -> None:
        with self.fleet.client() as client:
            for _, event in stream_events(client, "/v1/completions", LONG):
                self.events.append(event)
                self.started.set()
        self.ended_at = time.monotonic()

    @property
    def error(self) -> dict[str, Any]:
        last = self.events[-1]
        assert last is not None and "error" in last, "the stream ended without an error object"
        return dict(last["error"])


def start_stream(fleet: Fleet) -> LongStream:
    stream = LongStream(fleet)
    stream.start()
    assert stream.started.wait(20)
    return stream


def answers(fleet: Fleet) -> bool:
    with fleet.client() as client:
        body = {"model": "auto", "messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0}
        response = client.post("/v1/chat/completions", json=body)
    return response.status_code == 200 and bool(response.json()["choices"][0]["message"]["content"])


def is_idle(fleet: Fleet) -> bool:
    return (
        fleet.metric("shoal_requests_running") == 0
        and fleet.metric("shoal_kv_blocks", state="used") == 0
        and fleet.metric("shoal_state_slots", state="used") == 0
    )


def test_a_killed_engine_fails_its_stream_at_once_and_is_replaced(single: Fleet) -> None:
    before = single.ready["agents"][0]
    restarts = single.metric("shoal_engine_restarts_total") or 0
    stream = start_stream(single)
    killed_at = time.monotonic()
    os.kill(before["engine_pid"], signal.SIGKILL)
    stream.join(10)
    assert stream.ended_at - killed_at < 2
    assert stream.error["type"] == "server_error"
    assert stream.error["code"] == "engine_failed"
    after = wait_for(
        "a new engine",
        lambda: (row := single.ready["agents"][0])["engine_pid"] != before["engine_pid"] and row,
        20,
    )
    assert after["pid"] == before["pid"]
    wait_for("service after the engine's death", lambda: answers(single), 20)
    assert wait_for("the restart on /metrics", lambda: single.metric("shoal_engine_restarts_total") == restarts + 1, 5)


def test_a_killed_agent_leaves_no_engine_and_returns_under_its_id(single: Fleet) -> None:
    before = single.ready["agents"][0]
    stream = start_stream(single)
    killed_at = time.monotonic()
    os.kill(before["pid"], signal.SIGKILL)
    stream.join(10)
    assert stream.ended_at - killed_at < 2
    assert stream.error["code"] == "node_lost"
    wait_for("the end of the orphaned engine", lambda: not is_alive(before["engine_pid"]), 2)
    after = wait_for("a new agent", lambda: (row := single.ready["agents"][0])["pid"] != before["pid"] and row, 5)
    assert after["id"] == before["id"]
    wait_for("service after the agent's death", lambda: answers(single), 20)


def test_a_killed_controller_takes_no_agent_with_it(single: Fleet) -> None:
    before = single.ready
    os.kill(before["controllers"][0]["pid"], signal.SIGKILL)
    wait_for("a new controller", lambda: single.ready["controllers"] != before["controllers"], 10)
    assert single.ready["agents"] == before["agents"]
    assert single.ready["http"] == before["http"]
    wait_for("service after the controller's death", lambda: answers(single), 20)


def test_a_client_that_goes_away_frees_its_sequence(single: Fleet) -> None:
    wait_for("an idle engine", lambda: is_idle(single))
    counted = single.metric("shoal_requests_total") or 0
    with single.client() as client, client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
        lines = response.iter_lines()  # kept: where nobody holds them, the stream closes
        for _ in range(11):
            next(lines)
        wait_for("the running request on /metrics", lambda: single.metric("shoal_requests_running") == 1, 10)
    wait_for("an idle engine after the client left", lambda: is_idle(single), 1.5)
    assert wait_for("the aborted request in the count", lambda: single.metric("shoal_requests_total") == counted + 1, 2)


def test_a_client_that_goes_away_without_streaming_frees_its_sequence_too(single: Fleet) -> None:
    wait_for("an idle engine", lambda: is_idle(single))
    address = urlsplit(single.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.request("POST", "/v1/completions", json.dumps(LONG), {"Content-Type": "application/json"})
    wait_for("the running request on /metrics", lambda: single.metric("shoal_requests_running") == 1, 10)
    connection.close()
    wait_for("an idle engine after the client left", lambda: is_idle(single), 1.5)


def test_sigterm_ends_every_process_within_five_seconds(tmp_path: Path) -> None:
    with running_fleet(tmp_path / "home", "--agents", "2") as fleet:
        ready = fleet.ready
        pids = [row["pid"] for row in ready["controllers"] + ready["agents"]]
        pids += [row["engine_pid"] for row in ready["agents"]]
        assert all(is_alive(pid) for pid in pids)
        stream = start_stream(fleet)
        started_at = time.monotonic()
        fleet.process.send_signal(signal.SIGTERM)
        assert fleet.process.wait(timeout=6) == 0
        assert time.monotonic() - started_at < 5
        assert not [pid for pid in pids if is_alive(pid)]
        assert not fleet.ready_path.exists()
        stream.join(5)


def test_a_killed_up_leaves_no_process_behind(tmp_path: Path) -> None:
    with running_fleet(tmp_path / "home") as fleet:
        ready = fleet.ready
        pids = [ready["controllers"][0]["pid"], ready["agents"][0]["pid"], ready["agents"][0]["engine_pid"]]
        fleet.process.kill()
        wait_for("the end of all children", lambda: not [pid for pid in pids if is_alive(pid)], 6)
