"""The engine as a child: configured, listened to, restarted when it dies, gone when the agent goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from shoal.agent.engine_process import EngineConfig, EnginePhase, EngineProcess
from shoal.runtime import wire

from .fake_controller import until

Command = Callable[[str], tuple[str, ...]]


class Recorder:
    def __init__(self) -> None:
        self.engine: EngineProcess | None = None
        self.phases: list[EnginePhase] = []
        self.frames: list[object] = []
        self.lost_at: list[int] = []

    def on_phase(self) -> None:
        assert self.engine is not None
        self.phases.append(self.engine.phase)

    def on_lost(self) -> None:
        self.lost_at.append(len(self.phases))

    def on_frame(self, frame: object) -> None:
        self.frames.append(frame)

    def outputs(self) -> list[wire.Output]:
        return [output for frame in self.frames if isinstance(frame, wire.OutputBatch) for output in frame.outputs]


@contextlib.asynccontextmanager
async def running(
    command: tuple[str, ...], tmp_path: Path, draw: float = 0.0, load_timeout_s: float = 20.0
) -> AsyncIterator[tuple[EngineProcess, Recorder]]:
    recorder = Recorder()
    config = EngineConfig(
        command,
        wire.Configure(model_dir="/nowhere", served_name="m"),
        tmp_path / "logs" / "engine.log",
        load_timeout_s=load_timeout_s,
        draw=lambda: draw,
    )
    engine = EngineProcess(config, recorder)
    recorder.engine = engine
    async with asyncio.TaskGroup() as group:
        group.create_task(engine.run())
        try:
            yield engine, recorder
        finally:
            await engine.close()
    assert engine.phase is EnginePhase.CLOSED


def text_request(request_id: str, order: str, max_tokens: int = 3) -> wire.Request:
    return wire.Request(request_id=request_id, prompt=wire.TextPrompt(order), max_tokens=max_tokens)


async def test_it_serves_and_ends(engine_command: Command, tmp_path: Path) -> None:
    async with running(engine_command("serve"), tmp_path) as (engine, recorder):
        await until(lambda: engine.phase is EnginePhase.SERVING)
        pid = engine.pid
        assert pid is not None and psutil.pid_exists(pid)
        assert engine.ready is not None and engine.ready.model == "m" and engine.ready.max_running == 4
        assert engine.send(text_request("r", "count"))
        finish = await until(lambda: next((o.finish for o in recorder.outputs() if o.finish), None))
        assert finish.reason is wire.FinishReason.LENGTH
        assert [o.token_ids for o in recorder.outputs()] == [[0], [1], [2]]
        began = time.monotonic()
    assert time.monotonic() - began < 1.0
    assert not psutil.pid_exists(pid)
    assert recorder.phases == [EnginePhase.STARTING, EnginePhase.SERVING, EnginePhase.CLOSED]
    assert engine.num_restarts == 0
    assert (tmp_path / "logs" / "engine.log").read_text() == "loading m\n"


async def test_a_killed_engine_is_missed_at_once_and_started_again(engine_command: Command, tmp_path: Path) -> None:
    async with running(engine_command("serve"), tmp_path) as (engine, recorder):
        await until(lambda: engine.phase is EnginePhase.SERVING)
        pid = engine.pid
        assert pid is not None
        assert engine.send(text_request("r", "wait"))
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        await until(lambda: recorder.lost_at)
        assert time.monotonic() - began < 0.5
        assert recorder.lost_at == [2], "its requests hear of it before the phase changes"
        await until(lambda: engine.phase is EnginePhase.SERVING and engine.pid != pid)
        assert engine.num_restarts == 1
        assert engine.send(text_request("r2", "count", 1))
        await until(lambda: any(o.request_id == "r2" for o in recorder.outputs()))


async def test_repeated_deaths_wait_longer_each_time(engine_command: Command, tmp_path: Path) -> None:
    async with running(engine_command("die"), tmp_path, draw=0.999) as (engine, recorder):
        await until(lambda: engine.num_restarts >= 2)
        assert engine.failure is not None and engine.failure.retryable
        assert "status 9" in engine.failure.message
        # The first restart was free; the next ones wait 0.2, 0.4, 0.8 ... times the draw.
        began = time.monotonic()
        await until(lambda: engine.num_restarts >= 4)
        assert time.monotonic() - began > 0.4
        assert EnginePhase.SERVING not in recorder.phases


async def test_a_model_that_cannot_be_served_is_not_tried_again(engine_command: Command, tmp_path: Path) -> None:
    async with running(engine_command("load_failed"), tmp_path) as (engine, recorder):
        await until(lambda: engine.phase is EnginePhase.BROKEN)
        await asyncio.sleep(0.3)
        assert engine.num_restarts == 0
        assert engine.failure is not None and engine.failure.code == "unsupported"
        assert not engine.send(text_request("r", "count"))


async def test_a_retryable_load_failure_is_tried_again(engine_command: Command, tmp_path: Path) -> None:
    async with running(engine_command("load_retryable"), tmp_path) as (engine, _):
        await until(lambda: engine.num_restarts >= 2)


@pytest.mark.parametrize("mode", ["garbage", "oversize"])
async def test_a_broken_conversation_ends_the_child(mode: str, engine_command: Command, tmp_path: Path) -> None:
    async with running(engine_command(mode), tmp_path, draw=0.999) as (engine, recorder):
        await until(lambda: engine.num_restarts >= 1)
        assert recorder.lost_at
        assert engine.failure is None or "protocol" in engine.failure.message


async def test_a_load_that_hangs_is_ended(engine_command: Command, tmp_path: Path) -> None:
    async with running(engine_command("hang"), tmp_path, load_timeout_s=0.6) as (engine, _):
        await until(lambda: engine.failure is not None)
        assert engine.failure is not None and "too long" in engine.failure.message


async def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    async with running((str(tmp_path / "nothing"),), tmp_path) as (engine, _):
        await until(lambda: engine.num_restarts >= 1)
        assert engine.pid is None


async def test_closing_while_it_waits_to_restart(engine_command: Command, tmp_path: Path) -> None:
    async with running(engine_command("die"), tmp_path, draw=0.999) as (engine, _):
        await until(lambda: engine.num_restarts >= 4)
        began = time.monotonic()
    assert time.monotonic() - began < 1.0


AGENT = """
import asyncio, sys
from pathlib import Path
from shoal.agent.engine_process import EngineConfig, EngineProcess
from shoal.runtime import wire

class Quiet:
    def on_phase(self):
        if engine.ready is not None:
            print(engine.pid, flush=True)
    def on_lost(self): pass
    def on_frame(self, frame): pass

command = (sys.executable, "-P", sys.argv[1], "serve")
config = EngineConfig(command, wire.Configure(model_dir="/nowhere", served_name="m"), Path(sys.argv[2]))
engine = EngineProcess(config, Quiet())
asyncio.run(engine.run())
"""


def test_a_killed_agent_leaves_no_engine(engine_command: Command, tmp_path: Path) -> None:
    script = engine_command("serve")[2]
    agent = subprocess.Popen(
        [sys.executable, "-P", "-c", AGENT, script, str(tmp_path / "e.log")], stdout=subprocess.PIPE, text=True
    )
    assert agent.stdout is not None
    with agent.stdout:
        engine_pid = int(agent.stdout.readline())
        assert psutil.pid_exists(engine_pid)
        agent.kill()
        agent.wait()
        deadline = time.monotonic() + 2.0
        while _is_alive(engine_pid) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert not _is_alive(engine_pid)


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
