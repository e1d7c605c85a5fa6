"""A real `shoal up` for tests: starts it, reads its ready file, talks to it, ends it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

START_TIMEOUT_S = 90.0


def wait_for(what: str, condition: Callable[[], Any], timeout_s: float = 10.0, pause_s: float = 0.05) -> Any:
    """The first true value of `condition`, or an AssertionError that names `what` and the last value."""
    deadline = time.monotonic() + timeout_s
    value: Any = None
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(pause_s)
    raise AssertionError(f"{what} did not happen within {timeout_s} s; last: {value!r}")


def is_alive(pid: int) -> bool:
    """Whether a process with this id runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@dataclass
class Fleet:
    """A running `shoal up` and its folders."""

    process: subprocess.Popen[str]
    home: Path
    ready_path: Path

    @property
    def ready(self) -> dict[str, Any]:
        return dict(json.loads(self.ready_path.read_text()))

    @property
    def url(self) -> str:
        return str(self.ready["http"])

    def client(self, **settings: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60.0, **settings)

    def metric(self, name: str, **labels: str) -> float | None:
        """Sum of the samples of `name` whose labels include `labels`; None when there is none."""
        values = [
            value for sample, found, value in self.samples() if sample == name and labels.items() <= found.items()
        ]
        return sum(values) if values else None

    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        from prometheus_client.parser import text_string_to_metric_families

        with self.client() as client:
            text = client.get("/metrics").text
        return [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def everything_written(self) -> str:
        """Every file under the home folder, as text."""
        return "\n".join(
            path.read_bytes().decode("utf-8", "replace") for path in self.home.rglob("*") if path.is_file()
        )


@contextlib.contextmanager
def running_fleet(home: Path, *arguments: str) -> Iterator[Fleet]:
    """`shoal up` on free ports under `home`, ready to serve; everything has ended when the block is left."""
    ready_path = home / "ready.json"
    home.mkdir(parents=True, exist_ok=True)
    output = (home / "up.out").open("w")
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "shoal.deploy",
            "up",
            "--http",
            "127.0.0.1:0",
            "--grpc",
            "127.0.0.1:0",
            "--ready-file",
            str(ready_path),
            *arguments,
        ],
        env=os.environ | {"SHOAL_HOME": str(home)},
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    fleet = Fleet(process, home, ready_path)
    try:
        wait_for(
            "the ready file",
            lambda: ready_path.exists() or process.poll() is not None,
            START_TIMEOUT_S,
        )
        if process.poll() is not None:
            raise AssertionError(f"shoal up ended with {process.returncode}: {(home / 'up.out').read_text()}")
        yield fleet
    finally:
        pids = _pids(ready_path)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        finally:
            output.close()
            for pid in pids:
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)


def _pids(ready_path: Path) -> list[int]:
    """Process ids of the children that the ready file names."""
    with contextlib.suppress(OSError, ValueError):
        ready = json.loads(ready_path.read_text())
        return [row["pid"] for row in ready["controllers"] + ready["agents"]] + [
            row["engine_pid"] for row in ready["agents"]
        ]
    return []


def stream_events(
    client: httpx2.Client, path: str, body: dict[str, Any]
) -> Iterator[tuple[float, dict[str, Any] | None]]:
    """(arrival time, event) of a streamed answer; the end marker is None."""
    with client.stream("POST", path, json=body | {"stream": True}) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield time.monotonic(), None if line == "data: [DONE]" else json.loads(line[6:])
