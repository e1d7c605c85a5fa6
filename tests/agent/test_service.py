"""The whole agent as a process, with a fake engine and a fake controller: light, punctual at its end, true in its files."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from shoal.proto.v1 import generation_pb2, node_pb2

from .fake_controller import FakeController, until
from .tiny_models import write_tiny

MAX_RESIDENT_BYTES = 80_000_000
NEVER_LOADED = {
    "torch",
    "numpy",
    "huggingface_hub",
    "httpx2",
    "httpx",
    "rich",
    "sqlalchemy",
    "transformers",
    "pydantic",
}

AGENT = """
import asyncio, json, sys, threading
from pathlib import Path
from shoal.agent.service import AgentConfig, run_agent
from shoal.runtime.config import EngineOptions
arguments = json.loads(sys.argv[1])

def tell_modules():  # a line on request, after the stream of the controller stands
    if sys.stdin.readline():
        print(json.dumps(sorted(sys.modules)), flush=True)

if not arguments.get("until_eof"):
    threading.Thread(target=tell_modules, daemon=True).start()
config = AgentConfig(
    node_id="n1", version="9.9", home=Path(arguments["home"]), controllers=tuple(arguments["controllers"]),
    models=tuple(arguments["models"]), options=EngineOptions(memory=2**31), engine=tuple(arguments["engine"]),
    status_file=Path(arguments["home"]) / "status.json", ends_with_stdin=bool(arguments.get("until_eof")),
)
asyncio.run(run_agent(config, lambda line: print(line, file=sys.stderr, flush=True)))
"""


@dataclass
class AgentProcess:
    process: asyncio.subprocess.Process
    home: Path

    def status(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.home / "status.json").read_text())
        except FileNotFoundError:
            return {}
        return content


@asynccontextmanager
async def agent(
    command: tuple[str, ...],
    home: Path,
    *controllers: FakeController,
    environment: Mapping[str, str] = os.environ,
    **more: Any,
) -> AsyncIterator[AgentProcess]:
    model = write_tiny(home / "models" / "tiny", hidden_size=64)
    arguments = {
        "home": str(home),
        "controllers": [controller.address for controller in controllers],
        "models": [str(model)],
        "engine": command,
        **more,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-c",
        AGENT,
        json.dumps(arguments),
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield AgentProcess(process, home)
    finally:
        if process.returncode is None:
            process.kill()
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def ready(controller: FakeController, it: AgentProcess) -> dict[str, Any]:
    await controller.peer()
    await until(lambda: it.status().get("phase") == "ready" and it.status().get("linked"))
    return it.status()


async def test_light_and_true_in_its_status(
    engine_command: Callable[[str], tuple[str, ...]], controller: FakeController, tmp_path: Path
) -> None:
    async with agent(engine_command("serve"), tmp_path, controller) as it:
        status = await ready(controller, it)
        assert status == {
            "id": "n1",
            "pid": it.process.pid,
            "engine_pid": status["engine_pid"],
            "metrics": status["metrics"],
            "model": "tiny",
            "phase": "ready",
            "detail": "",
            "linked": [controller.address],
        }
        assert is_alive(status["engine_pid"])
        await until(lambda: controller.peers[0].heartbeats()[-1].HasField("stats"))
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(status["metrics"], timeout=5).read().decode())
        assert "shoal_requests_running 0.0" in page
        assert 'backend="reference"' in page and 'format="bf16"' in page and 'isa="FAKE2"' in page
        peer = controller.peers[0]
        peer.submit("r", "count", max_tokens=20)
        await until(lambda: peer.finish_of("r"))
        assert psutil.Process(it.process.pid).memory_info().rss < MAX_RESIDENT_BYTES
        assert it.process.stdin is not None and it.process.stdout is not None
        it.process.stdin.write(b"modules\n")
        modules = set(json.loads(await it.process.stdout.readline()))
        assert "grpc" in modules and not modules & NEVER_LOADED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_everything_in_order(
    number: signal.Signals,
    engine_command: Callable[[str], tuple[str, ...]],
    controller: FakeController,
    tmp_path: Path,
) -> None:
    async with agent(engine_command("serve"), tmp_path, controller) as it:
        status = await ready(controller, it)
        peer = controller.peers[0]
        peer.submit("short", "count", max_tokens=5)
        peer.submit("long", "wait")
        await until(lambda: peer.of("short"))
        began = time.monotonic()
        it.process.send_signal(number)
        assert await it.process.wait() == 0
        assert time.monotonic() - began < 3.0
        assert not is_alive(status["engine_pid"])
        assert "leaving" in peer.kinds() and peer.states()[-1].phase == node_pb2.NODE_PHASE_DRAINING
        finish = peer.finish_of("short")
        assert finish is not None and finish.reason == generation_pb2.FINISH_REASON_LENGTH
        assert it.status()["phase"] == "draining"


async def test_it_ends_without_any_controller(
    engine_command: Callable[[str], tuple[str, ...]], controller: FakeController, tmp_path: Path
) -> None:
    async with agent(engine_command("serve"), tmp_path, controller) as it:
        await ready(controller, it)
        await controller.stop()
        await until(lambda: not it.status()["linked"])
        began = time.monotonic()
        it.process.terminate()
        assert await it.process.wait() == 0
        assert time.monotonic() - began < 3.0


async def test_the_end_of_stdin_ends_it_when_asked_to(
    engine_command: Callable[[str], tuple[str, ...]], controller: FakeController, tmp_path: Path
) -> None:
    async with agent(engine_command("serve"), tmp_path, controller, until_eof=True) as it:
        status = await ready(controller, it)
        assert it.process.stdin is not None
        it.process.stdin.close()
        assert await it.process.wait() == 0
        assert not is_alive(status["engine_pid"])


async def test_a_killed_agent_takes_its_engine_along(
    engine_command: Callable[[str], tuple[str, ...]], controller: FakeController, tmp_path: Path
) -> None:
    async with agent(engine_command("serve"), tmp_path, controller) as it:
        status = await ready(controller, it)
        os.kill(it.process.pid, signal.SIGKILL)
        await until(lambda: not is_alive(status["engine_pid"]), 2.0)
        await until(lambda: controller.peers[0].ended)


async def test_a_proxy_is_not_asked_for_this_machine(
    engine_command: Callable[[str], tuple[str, ...]], controller: FakeController, tmp_path: Path
) -> None:
    proxies = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    async with agent(engine_command("serve"), tmp_path, controller, environment=proxies) as it:
        await ready(controller, it)


async def test_the_status_follows_the_engine(
    engine_command: Callable[[str], tuple[str, ...]], controller: FakeController, tmp_path: Path
) -> None:
    async with agent(engine_command("serve"), tmp_path, controller) as it:
        before = (await ready(controller, it))["engine_pid"]
        os.kill(before, signal.SIGKILL)
        await until(lambda: it.status()["engine_pid"] not in (before, None) and it.status()["phase"] == "ready")


async def test_a_model_that_cannot_be_loaded(
    engine_command: Callable[[str], tuple[str, ...]], controller: FakeController, tmp_path: Path
) -> None:
    async with agent(engine_command("load_failed"), tmp_path, controller) as it:
        await until(lambda: it.status().get("phase") == "failed")
        assert it.status()["detail"] == "unsupported: no such model"
        assert it.process.returncode is None, "the agent stays, and says why"
