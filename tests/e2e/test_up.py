"""`shoal up` itself: broken checkpoints, two fleets on one home, taken ports, an end in the middle of the start."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shoal_e2e_fleet import running_fleet, wait_for  # type: ignore[import-not-found]

pytestmark = pytest.mark.e2e

POCKET = Path(__file__).parents[2] / "models" / "pocket"


def up(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "shoal.deploy", "up", *arguments],
        env=os.environ | {"SHOAL_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_a_broken_checkpoint_is_told_in_one_line_that_names_the_tensor(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(POCKET, broken, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = up(tmp_path / "home", "--model", str(broken), "--once", "Hello")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ") and "model.safetensors" in last and "weight" in last
    assert "Traceback" not in done.stderr


def test_two_fleets_share_a_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_fleet(home) as first:
        done = up(home, "--once", "Hello")
        assert done.returncode == 0, done.stderr
        assert "pocket" in done.stdout
        with first.client() as client:
            assert client.get("/readyz").status_code == 200


def test_a_taken_port_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = up(tmp_path, "--http", f"127.0.0.1:{taken.getsockname()[1]}", "--grpc", "127.0.0.1:0")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "in use" in last and "127.0.0.1:0" in last


@pytest.mark.parametrize("after_s", [0.3, 1.5])
def test_an_interrupted_start_leaves_nothing_behind(tmp_path: Path, after_s: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "shoal.deploy", "up", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"],
        env=os.environ | {"SHOAL_HOME": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=10)
    wait_for("the end of every process of this home", lambda: not _processes_of(tmp_path), 6)


def _processes_of(home: Path) -> list[int]:
    """Processes whose environment names this home."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"SHOAL_HOME={home}\0".encode() in environment:
                found.append(int(entry.name))
    return found
