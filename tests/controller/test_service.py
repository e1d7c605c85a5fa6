"""A controller as a process: it says where it listens, answers on both ports, and ends in time whoever asks for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from shoal_fake_fleet import ready_state

from shoal.proto.v1 import fleet_pb2, fleet_pb2_grpc, link_pb2, link_pb2_grpc

START_TIMEOUT_S = 60.0  # imports alone take seconds on a busy machine


class Process:
    """`python -m shoal.controller run` with free ports."""

    def __init__(self, home: Path, *arguments: str, **settings: Any) -> None:
        self.status_path = home / "status.json"
        command = [sys.executable, "-P", "-W", "error", "-m", "shoal.controller", "run", "--home", str(home)]
        ports = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--status-file", str(self.status_path)]
        self.log_path = home / "log"
        with self.log_path.open("wb") as log:
            self.child = subprocess.Popen([*command, *ports, *arguments], stdout=log, stderr=log, **settings)

    def wait_status(self) -> dict[str, Any]:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.child.poll() is None:
            if self.status_path.exists():
                return dict(json.loads(self.status_path.read_text()))
            time.sleep(0.02)
        raise AssertionError(self.log_path.read_text())

    def end(self) -> None:
        self.child.kill()
        self.child.wait()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path, "--until-eof", stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.end()
        if process.child.stdin:
            process.child.stdin.close()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())


def test_it_serves_both_ports_and_says_goodbye_on_sigterm(running: Process) -> None:
    status = running.wait_status()
    assert status["pid"] == running.child.pid
    assert json.loads(get(f"{status['http']}/healthz"))
    with grpc.insecure_channel(status["grpc"]) as channel:
        hello = link_pb2.Hello(node_id="n1", min_protocol=1, max_protocol=1, state=ready_state())
        link: Any = link_pb2_grpc.AgentLinkStub(channel)
        silence = iter(lambda: time.sleep(0.05) or link_pb2.AgentFrame(heartbeat=link_pb2.Heartbeat(sequence=1)), None)
        frames = link.Connect(frame for part in ([link_pb2.AgentFrame(hello=hello)], silence) for frame in part)
        assert next(frames).HasField("welcome")
        fleet: Any = fleet_pb2_grpc.FleetStub(channel)
        assert [node.id for node in fleet.ListNodes(fleet_pb2.ListNodesRequest()).nodes] == ["n1"]
        assert 'shoal_agents{state="ready"} 1' in get(f"{status['http']}/metrics")
        assert json.loads(get(f"{status['http']}/admin/v1/nodes"))["nodes"][0]["id"] == "n1"
        started = time.monotonic()
        running.child.send_signal(signal.SIGTERM)
        seen = []
        with pytest.raises(grpc.RpcError):
            for frame in frames:
                seen.append(frame.WhichOneof("frame"))
                if frame.HasField("goodbye"):
                    assert frame.goodbye.code == "shutting_down" and frame.goodbye.retry
        assert seen[-1] == "goodbye"
        assert running.child.wait(timeout=10) == 0
        assert time.monotonic() - started < 5
    assert (running.status_path.parent / "state.db").exists()


def test_it_ends_when_its_parent_goes(running: Process) -> None:
    running.wait_status()
    assert running.child.stdin is not None
    running.child.stdin.close()
    assert running.child.wait(timeout=5) == 0


@pytest.mark.parametrize("option", ["--http", "--grpc"])
def test_a_port_that_is_taken_ends_it_with_one_line(tmp_path: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = Process(tmp_path, option, address, stdin=subprocess.DEVNULL)
        assert process.child.wait(timeout=START_TIMEOUT_S) == 1
    last = process.log_path.read_text().splitlines()[-1]
    assert last.startswith("Error: cannot listen on " + address) and "in use" in last
    assert not process.status_path.exists()


def test_a_broken_database_ends_it_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(os.urandom(8192))
    process = Process(tmp_path, stdin=subprocess.DEVNULL)
    assert process.child.wait(timeout=START_TIMEOUT_S) == 1
    assert process.log_path.read_text().splitlines()[-1].startswith("Error: cannot use the database")
