"""How many threads a step should have: the cores that this process may use. Reads the system's files, computes nothing."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath

SMALL_MODEL_BYTES = 128 * 1024 * 1024
"""Weights below this are computed by one thread unless told otherwise: sharing such small products costs more than it saves."""


def choose_threads(asked: int | None, weight_bytes: int) -> int:
    """What was asked for, one for a small model, else a thread a core."""
    if asked is not None:
        return asked
    return 1 if weight_bytes < SMALL_MODEL_BYTES else num_cores()


def processors_for(threads: int) -> tuple[int, ...]:
    """The processor of each thread, where the threads fill the cores that this process has; else none, and the system places them.

    Fewer threads than cores are left to the system: another process like this one would choose the same cores.
    """
    cores = usable_processors()
    return cores if 1 < threads == len(cores) == num_cores() else ()


def num_cores(root: Path = Path("/")) -> int:
    """Cores of this process's affinity, no more than its control groups give it time for."""
    num_processors = len(usable_processors(root))
    return max(1, math.ceil(min(num_processors, quota(root))))


def usable_processors(root: Path = Path("/")) -> tuple[int, ...]:
    """One processor of each core that the affinity allows: two on one core share its arithmetic."""
    if not hasattr(os, "sched_getaffinity"):  # neither macOS nor Windows have one, nor the files below
        return tuple(range(os.cpu_count() or 1))
    allowed = sorted(os.sched_getaffinity(0))
    taken: dict[str, int] = {}
    for processor in allowed:
        path = root / f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
        try:
            core = path.read_text(encoding="utf-8").strip()
        except OSError:
            core = str(processor)
        taken.setdefault(core, processor)
    return tuple(taken.values())


def quota(root: Path = Path("/")) -> float:
    """Processors' worth of time that the control groups grant, the tightest of the own group and its ancestors; infinite without any."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    tightest = math.inf
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        for folder in _groups(root, controllers, path):
            tightest = min(tightest, _version_2(folder), _version_1(folder))
    return tightest


def _groups(root: Path, controllers: str, path: str) -> list[Path]:
    """The own group and its ancestors. Inside a container the path may not exist below the mount; the mount itself does."""
    if controllers == "":
        mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
    elif "cpu" in controllers.split(","):
        mounts = [root / "sys/fs/cgroup/cpu", root / "sys/fs/cgroup/cpu,cpuacct"]
    else:
        return []
    own = PurePosixPath(path.lstrip("/"))
    parts = [own, *own.parents] if own.parts and ".." not in own.parts else [PurePosixPath()]
    return [mount / part for mount in mounts for part in parts]


def _version_2(folder: Path) -> float:
    """`cpu.max`: time and period in microseconds, or `max`."""
    words = _words(folder / "cpu.max")
    return _share(words[0], words[1]) if len(words) == 2 else math.inf


def _version_1(folder: Path) -> float:
    """The same in two files; -1 is no limit."""
    words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    return _share(words[0], words[1]) if len(words) == 2 else math.inf


def _share(time_us: str, period_us: str) -> float:
    if not (time_us.isdigit() and period_us.isdigit() and int(period_us) > 0):
        return math.inf
    return int(time_us) / int(period_us)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []
