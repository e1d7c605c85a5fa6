"""Whole processes that have fewer cores than threads, or share the cores that they are pinned to: they answer, and the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")

POCKET = Path(__file__).parents[2] / "models" / "pocket"
NUM_TOKENS = 20
ENOUGH_S = 90.0
"""For a start and NUM_TOKENS tokens of pocket, which take about a second."""


def start(home: Path, cores: set[int], *options: str) -> subprocess.Popen[bytes]:
    """`shoal generate` on these cores alone."""
    code = (
        f"import os, sys; os.sched_setaffinity(0, {cores}); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    words = ["generate", str(POCKET), "--prompt", "Shared ", "--max-tokens", str(NUM_TOKENS), "--ignore-eos"]
    command = [sys.executable, "-c", code, "-P", "-m", "shoal.deploy", *words, "--temperature", "0", "--json", *options]
    environment = os.environ | {"SHOAL_HOME": str(home)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def answers(processes: list[subprocess.Popen[bytes]]) -> list[list[int]]:
    """Their ids; all processes are gone afterwards, however it went."""
    try:
        told = []
        for process in processes:
            out, err = process.communicate(timeout=ENOUGH_S)
            assert process.returncode == 0, err.decode()
            told.append(json.loads(out)["token_ids"])
        return told
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_processes_that_share_their_cores_answer_the_same(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    (want,) = answers([start(tmp_path, set(cores), "--threads", "1")])
    assert len(want) == NUM_TOKENS
    assert answers([start(tmp_path, {cores[0]}, "--threads", "2")]) == [want]
    pair = {cores[0], cores[-1]}
    # As many threads as the process has cores: each is pinned to one, the same ones in both processes.
    threads = str(len(pair))
    assert answers([start(tmp_path, pair, "--threads", threads) for _ in range(2)]) == [want] * 2
