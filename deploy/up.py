"""A whole fleet on one machine: one controller and N agents as processes of their own.

This module starts and watches processes; it imports none of what they run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .child import Child, ChildFailed
from .ready_file import ready_content, write_json_atomically

POLL_S = 0.05
"""Pause between two looks at the children's status files."""

END_GRACE_S = 3.5
"""Seconds that the children have after SIGTERM before they are killed; the whole end stays under 5 s."""


@dataclass(frozen=True, slots=True)
class UpConfig:
    """What to start. Addresses are `host:port`, port 0 takes a free one."""

    http: str
    grpc: str
    models: tuple[str, ...]
    num_agents: int
    home: Path
    engine_args: tuple[str, ...] = ()
    ready_file: Path | None = None
    insecure: bool = False
    start_timeout_s: float = 600.0


class UpFailed(Exception):
    """The fleet could not be started; the message says what failed and where its log is."""


class LocalFleet:
    """The processes of one `shoal up`, from start to end."""

    def __init__(self, config: UpConfig, run_dir: Path) -> None:
        self._config = config
        self._run_dir = run_dir
        self._logs = config.home / "logs"
        self._addresses = {"http": config.http, "grpc": config.grpc}
        self._ready: dict[str, Any] | None = None
        self.controller = Child(
            "controller", "shoal.controller", self._controller_args, run_dir, self._logs / "controller.log"
        )
        host = socket.gethostname().split(".")[0] or "node"
        self.agents = [self._agent(f"{host}-{number}") for number in range(1, config.num_agents + 1)]

    def _controller_args(self) -> Sequence[str]:
        args = ["run", "--http", self._addresses["http"], "--grpc", self._addresses["grpc"], "--until-eof"]
        return [*args, *(["--insecure"] if self._config.insecure else [])]

    def _agent(self, node_id: str) -> Child:
        def args() -> Sequence[str]:
            given = ["run", "--id", node_id, "--controller", _dialled(self._addresses["grpc"]), "--until-eof"]
            for model in self._config.models:
                given += ["--model", model]
            return [*given, *(["--insecure"] if self._config.insecure else []), *self._config.engine_args]

        return Child(f"agent-{node_id}", "shoal.agent", args, self._run_dir, self._logs / f"agent-{node_id}.log")

    @property
    def children(self) -> list[Child]:
        return [self.controller, *self.agents]

    @property
    def ready(self) -> dict[str, Any]:
        """Content of the ready file; only after `wait_ready`."""
        assert self._ready is not None
        return self._ready

    async def wait_controller(self) -> None:
        """Until the controller listens; its addresses then hold for restarts too."""
        while not self.controller.refresh_status():  # noqa: ASYNC110 - another process writes the file
            await asyncio.sleep(POLL_S)
        status = self.controller.status
        assert status is not None
        self._addresses = {"http": status["http"].removeprefix("http://"), "grpc": status["grpc"]}

    async def wait_ready(self) -> None:
        """Until every agent is linked and serves. Raises UpFailed when one cannot load its model."""
        while True:
            waiting = 0
            for agent in self.agents:
                agent.refresh_status()
                status = agent.status or {}
                if status.get("phase") == "failed":
                    raise UpFailed(
                        f"{agent.name}: {status.get('detail') or 'the engine failed'} (log: {agent.log_path})"
                    )
                waiting += not (status.get("phase") == "ready" and status.get("linked") and status.get("engine_pid"))
            if not waiting:
                return
            await asyncio.sleep(POLL_S)

    async def keep_ready_file(self) -> None:
        """Rewrite the ready file whenever a process id changes, until cancelled."""
        while True:
            self.update_ready()
            await asyncio.sleep(POLL_S)

    def update_ready(self) -> None:
        """Compare with the last content and write what changed."""
        for child in self.children:
            child.refresh_status()
        statuses = [agent.status for agent in self.agents if agent.status is not None]
        if self.controller.status is None or len(statuses) < len(self.agents):
            return
        content = ready_content(self.controller.status, statuses, self._ready)
        if content != self._ready:
            self._ready = content
            if self._config.ready_file is not None:
                write_json_atomically(self._config.ready_file, content)

    async def close(self) -> None:
        """End every child; under 5 seconds."""
        for child in self.children:
            child.terminate()
        await asyncio.gather(*(child.wait_closed(END_GRACE_S) for child in self.children))
        if self._config.ready_file is not None:
            with contextlib.suppress(OSError):
                self._config.ready_file.unlink()


def _dialled(address: str) -> str:
    """The address at which a local agent reaches a listener: a wildcard host is dialled on loopback."""
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("0.0.0.0", "", "[::]", "*") else address


async def run_fleet(
    config: UpConfig,
    serve: Callable[[dict[str, Any]], asyncio.Future[None] | Any],
    announce: Callable[[str], None],
) -> None:
    """Start everything, `await serve(ready)`, end everything. SIGINT and SIGTERM cancel `serve`.

    Raises UpFailed when the fleet does not come up, and what `serve` raises.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    if sys.platform != "win32":
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
    failure: BaseException | None = None
    with tempfile.TemporaryDirectory(prefix="shoal-up-") as run_dir:
        fleet = LocalFleet(config, Path(run_dir))
        try:
            async with asyncio.TaskGroup() as group:
                ended = group.create_task(stop.wait(), name="up.stop")
                work = group.create_task(_start_and_serve(fleet, config, group, serve, announce), name="up.serve")
                await asyncio.wait({ended, work}, return_when=asyncio.FIRST_COMPLETED)
                # Whichever came first, the rest of the group ends with it.
                raise _Finished
        except* _Finished:
            pass
        except* Exception as group_failed:
            failure = group_failed.exceptions[0]
        finally:
            await fleet.close()
    if isinstance(failure, ChildFailed):
        raise UpFailed(str(failure)) from None
    if isinstance(failure, TimeoutError):
        logs = config.home / "logs"
        raise UpFailed(f"the fleet was not ready after {config.start_timeout_s:.0f} s; see {logs}") from None
    if failure is not None:
        raise failure


class _Finished(Exception):
    """Ends the task group: the work is done or a signal came."""


async def _start_and_serve(
    fleet: LocalFleet,
    config: UpConfig,
    group: asyncio.TaskGroup,
    serve: Callable[[dict[str, Any]], Awaitable[None]],
    announce: Callable[[str], None],
) -> None:
    async with asyncio.timeout(config.start_timeout_s):
        group.create_task(fleet.controller.run(), name="up.controller")
        await fleet.wait_controller()
        announce(f"controller listens; starting {config.num_agents} agent(s) with {', '.join(config.models)}")
        for agent in fleet.agents:
            group.create_task(agent.run(), name=f"up.{agent.name}")
        await fleet.wait_ready()
        fleet.update_ready()
    group.create_task(fleet.keep_ready_file(), name="up.ready")
    await serve(fleet.ready)


def default_threads(num_agents: int) -> int:
    """Cores of this machine shared among the agents' engines, at least one each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // num_agents)
