"""How many threads: affinity, cores that two processors share, and the time that control groups grant."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from shoal.runtime import cores
from shoal.runtime.cores import SMALL_MODEL_BYTES, choose_threads, num_cores, processors_for, quota, usable_processors

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_what_was_asked_for_counts_and_small_models_take_one() -> None:
    assert choose_threads(7, 10**12) == 7
    assert choose_threads(None, SMALL_MODEL_BYTES - 1) == 1
    assert choose_threads(None, SMALL_MODEL_BYTES) == num_cores() >= 1


def test_two_processors_on_one_core_count_once(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    together = {f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list": "0-1\n" for number in allowed}
    assert usable_processors(tmp_path) == tuple(allowed)
    assert usable_processors(machine(tmp_path, together)) == (allowed[0],)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, math.inf),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "50000 100000\n",
            },
            0.5,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4.0),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/y\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            math.inf,
        ),
        ({"proc/self/cgroup": "0::/../x\nnonsense\n", "sys/fs/cgroup/cpu.max": "what ever\n"}, math.inf),
    ],
)
def test_quotas(tmp_path: Path, files: dict[str, str], expected: float) -> None:
    assert quota(machine(tmp_path, files)) == expected
    if expected < 1:
        assert num_cores(tmp_path) == 1


def test_only_threads_that_fill_the_machine_are_placed() -> None:
    here = cores.num_cores()
    if here > 1:
        assert processors_for(here) == usable_processors()[:here]
    assert processors_for(here + 1) == ()
    assert processors_for(1) == ()
