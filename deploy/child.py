"""One process of a local fleet: started, watched, started again when it dies, ended within a bound.

state       left when
STARTING    its status file appears -> RUNNING; it exits -> ended, or started again if it had been RUNNING before
RUNNING     it exits -> started again (at once, then with growing pauses while it dies young)
CLOSED      `close` was called: terminated, killed after the grace
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MAX_LOG_BYTES = 5 * 1024 * 1024
"""A log beyond this is moved aside (one generation) when its process starts."""

YOUNG_S = 5.0
"""A process that dies before this age is started again after a pause instead of at once."""

MAX_RESTART_PAUSE_S = 3.0


class ChildFailed(Exception):
    """The process ended before it served. The message is the last line of its log."""


class Child:
    """Runs `python -P -m module args...`; `status` is the content of its status file, None until it has written one."""

    def __init__(
        self, name: str, module: str, args: Callable[[], Sequence[str]], run_dir: Path, log_path: Path
    ) -> None:
        self.name = name
        self.log_path = log_path
        self.status_path = run_dir / f"{name}.json"
        self.status: dict[str, Any] | None = None
        self._module = module
        self._args = args
        self._process: asyncio.subprocess.Process | None = None
        self._closing = False
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def run(self) -> None:
        """Keep the process alive until `close`. Raises ChildFailed when it ends before it ever served."""
        served = False
        young_deaths = 0
        loop = asyncio.get_running_loop()
        while not self._closing:
            started_at = loop.time()
            process = await self._start()
            await process.wait()
            if self._closing:
                return
            served = served or self.refresh_status()
            if not served:
                raise ChildFailed(self._last_log_line() or f"{self.name} ended with status {process.returncode}")
            young_deaths = young_deaths + 1 if loop.time() - started_at < YOUNG_S else 0
            # The first restart is immediate: a process that was killed from outside should be missed as briefly as possible.
            await asyncio.sleep(min(MAX_RESTART_PAUSE_S, 0.1 * 2**young_deaths) if young_deaths > 1 else 0)

    async def _start(self) -> asyncio.subprocess.Process:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists() and self.log_path.stat().st_size > MAX_LOG_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        command = [sys.executable, "-P", "-m", self._module, *self._args(), "--status-file", str(self.status_path)]
        # Its own process group: Ctrl-C reaches this process only, which then ends the children in order.
        group: dict[str, Any] = (
            {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}  # type: ignore[attr-defined,unused-ignore]
            if sys.platform == "win32"
            else {"start_new_session": True}
        )
        with self.log_path.open("ab") as log:
            # stdin is a pipe that nobody writes: its end tells the child that this process is gone, however it went.
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, **group
            )
        return self._process

    def refresh_status(self) -> bool:
        """Read the status file if the running process has written it. True when there is a status."""
        with contextlib.suppress(OSError, ValueError):
            status = json.loads(self.status_path.read_text(encoding="utf-8"))
            if self._process is not None and status.get("pid") == self._process.pid:
                self.status = status
        return self.status is not None

    def _last_log_line(self) -> str:
        with contextlib.suppress(OSError), self.log_path.open("rb") as log:
            log.seek(self._log_start)
            lines = [line for line in log.read(MAX_LOG_BYTES).decode("utf-8", "replace").splitlines() if line.strip()]
            return lines[-1].removeprefix("Error: ") if lines else ""
        return ""

    def terminate(self) -> None:
        """Ask the process to end and start it no more."""
        self._closing = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    async def wait_closed(self, grace_s: float) -> None:
        """Wait for the end, kill after `grace_s` seconds."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await process.wait()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        with contextlib.suppress(OSError):
            os.unlink(self.status_path)
