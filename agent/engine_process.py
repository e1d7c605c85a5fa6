"""The engine as a child process: started, configured, listened to, started again when it dies.

    phase      entered when                          left when
    STARTING   the child was started                 Ready -> SERVING; LoadFailed -> BROKEN; its end -> WAITING
    SERVING    Ready                                 its end -> WAITING
    WAITING    the child ended by itself             the back-off is over (none the first time) -> STARTING
    BROKEN     LoadFailed that is not retryable      never: the same files would fail again
    CLOSED     `close` was called                    never

The conversation is `shoal.runtime.wire` over the child's stdin and stdout; the end of its stdin ends the child, so that an
agent that is killed leaves no engine behind. The child's stderr goes to a bounded log.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from shoal.runtime import wire

from .backoff import Backoff
from .log_file import BoundedLog

BACKOFF_BASE_S = 0.2
BACKOFF_CAP_S = 10.0
NUM_FREE_RESTARTS = 1
"""The first restart after a healthy run waits for nothing."""

HEALTHY_S = 5.0
"""An engine that has served this long before it died counts as healthy: the back-off starts anew."""

LOAD_TIMEOUT_S = 1800.0
"""An engine that is neither ready nor failed after this hangs, and is killed."""

MAX_UNSENT_BYTES = 2 * wire.MAX_FRAME_BYTES
"""Frames that wait for the engine to read them; beyond it new ones are refused."""

CLOSE_GRACE_S = 1.5
"""Seconds between the end of stdin and SIGKILL when the engine is closed."""

STDERR_CHUNK_BYTES = 64 * 1024


class EnginePhase(enum.Enum):
    STARTING = "starting"
    SERVING = "serving"
    WAITING = "waiting"
    BROKEN = "broken"
    CLOSED = "closed"


class EngineListener(Protocol):
    """What the engine's owner does with its news; every method is called from the event loop and must not block."""

    def on_phase(self) -> None:
        """The phase, the pid or the model changed."""

    def on_lost(self) -> None:
        """The child died with whatever it had; comes before the phase change."""

    def on_frame(self, frame: wire.OutputBatch | wire.CallResult | wire.Stats) -> None:
        """The engine said something."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How to start it. `command` is the child's argument list; `load_timeout_s` bounds a load that hangs."""

    command: Sequence[str]
    configure: wire.Configure
    log_path: Path
    load_timeout_s: float = LOAD_TIMEOUT_S
    draw: Callable[[], float] = field(default=random.random)


class EngineProcess:
    """One engine for the life of the agent. `run` keeps it alive; `send` speaks to it."""

    def __init__(self, config: EngineConfig, listener: EngineListener) -> None:
        self.phase = EnginePhase.WAITING
        self.ready: wire.Ready | None = None
        self.failure: wire.ErrorInfo | None = None
        self.num_restarts = 0
        self._config = config
        self._listener = listener
        self._process: asyncio.subprocess.Process | None = None
        self._closing = asyncio.Event()
        self._finished = asyncio.Event()
        self._log = BoundedLog(config.log_path)
        self._backoff = Backoff(BACKOFF_BASE_S, BACKOFF_CAP_S, config.draw, num_free=NUM_FREE_RESTARTS)

    @property
    def pid(self) -> int | None:
        """Process id of the running child."""
        return None if self._process is None else self._process.pid

    def send(self, message: wire.ToEngine) -> bool:
        """Hand a frame to a serving engine. False: it is not serving, or too far behind. Raises FrameError."""
        if self.phase is not EnginePhase.SERVING:
            return False
        return self._write(message)

    def _write(self, message: wire.ToEngine) -> bool:
        frame = wire.encode_frame(message)
        stdin = None if self._process is None else self._process.stdin
        if stdin is None or stdin.transport.is_closing():
            return False
        if stdin.transport.get_write_buffer_size() + len(frame) > MAX_UNSENT_BYTES:
            return False
        stdin.write(frame)
        return True

    async def run(self) -> None:
        """Until `close`, or for ever while BROKEN. An engine that dies is started again."""
        loop = asyncio.get_running_loop()
        try:
            while not self._closing.is_set():
                served_at = await self._live_once()
                if served_at is not None and loop.time() - served_at >= HEALTHY_S:
                    self._backoff.reset()
                if self._closing.is_set():
                    break
                if self.phase is EnginePhase.BROKEN:
                    await self._closing.wait()
                    break
                self._set_phase(EnginePhase.WAITING)
                self.num_restarts += 1
                await self._pause(self._backoff.next_delay_s())
        finally:
            self._log.close()
            self._finished.set()
        self._set_phase(EnginePhase.CLOSED)

    async def close(self) -> None:
        """End the child within CLOSE_GRACE_S and wait for `run`, which must have been started."""
        self._closing.set()
        if self._process is not None:
            _end_input(self._process)
        try:
            async with asyncio.timeout(CLOSE_GRACE_S):
                await self._finished.wait()
        except TimeoutError:
            if self._process is not None:
                _kill(self._process)
            await self._finished.wait()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _live_once(self) -> float | None:
        """One child from start to end. Returns when it became ready, None when it never did."""
        self.ready = None
        self.failure = None
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._config.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            self.failure = wire.ErrorInfo(
                code="engine_failed", message=f"cannot start the engine: {error}", retryable=True
            )
            return None
        served_at: float | None = None
        try:
            async with asyncio.TaskGroup() as group:
                log = group.create_task(self._copy_stderr(process), name="engine.stderr")
                if self._closing.is_set():
                    _end_input(process)
                self._set_phase(EnginePhase.STARTING)
                self._write(self._config.configure)
                served_at = await self._listen(process)
                # The child is gone or worthless: its requests must hear of it before anything else is waited for.
                self._listener.on_lost()
                await _end(process)
                log.cancel()
        finally:
            self.ready = None
            self._process = None
        if self.failure is None and not self._closing.is_set():
            self.failure = wire.ErrorInfo(
                code="engine_failed",
                message=f"the engine ended with status {process.returncode} (log: {self._config.log_path})",
                retryable=True,
            )
        return served_at

    async def _listen(self, process: asyncio.subprocess.Process) -> float | None:
        """Read frames until the child ends or breaks the protocol."""
        served_at: float | None = None
        try:
            async with asyncio.timeout(self._config.load_timeout_s) as loading:
                while (frame := await _read_frame(process)) is not None:
                    match frame:
                        case wire.Ready():
                            loading.reschedule(None)
                            served_at = asyncio.get_running_loop().time()
                            self.ready = frame
                            self._set_phase(EnginePhase.SERVING)
                        case wire.LoadFailed():
                            self.failure = frame.error
                            if not frame.error.retryable:
                                self._set_phase(EnginePhase.BROKEN)
                            return None
                        case _:
                            self._listener.on_frame(frame)
        except TimeoutError:
            self.failure = wire.ErrorInfo(code="engine_failed", message="loading took too long", retryable=True)
        except (wire.FrameError, msgspec.DecodeError) as error:
            self.failure = wire.ErrorInfo(
                code="engine_failed", message=f"the engine broke its protocol: {type(error).__name__}", retryable=True
            )
        return served_at

    async def _copy_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while chunk := await process.stderr.read(STDERR_CHUNK_BYTES):
            self._log.write(chunk)

    def _set_phase(self, phase: EnginePhase) -> None:
        self.phase = phase
        self._listener.on_phase()


async def _read_frame(process: asyncio.subprocess.Process) -> wire.FromEngine | None:
    """The next frame, None at the end of the stream. Raises FrameError or msgspec.DecodeError."""
    assert process.stdout is not None
    try:
        length = wire.frame_length(await process.stdout.readexactly(4))
        body = await process.stdout.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return wire.from_engine_decoder.decode(body)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close its stdin, wait, kill after the grace. Nobody else may read its stdout any more."""
    _end_input(process)
    # What it still says is thrown away: a full pipe would keep it from ending, and its end from being noticed.
    async with asyncio.TaskGroup() as group:
        group.create_task(_drain(process), name="engine.drain")
        try:
            async with asyncio.timeout(CLOSE_GRACE_S):
                await process.wait()
        except TimeoutError:
            _kill(process)
            await process.wait()


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    while await process.stdout.read(STDERR_CHUNK_BYTES):
        pass


def _end_input(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
