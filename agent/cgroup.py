"""Memory limits of control groups, version 1 and 2: a container's processes may use less than the machine has.

Every ancestor of the own group may set a limit, and the tightest holds. File names and formats: the kernel's documentation
of cgroup-v1/memory and cgroup-v2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

NO_LIMIT_V1 = 1 << 60
"""Version 1 writes a huge page-aligned number where nothing is limited."""


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """One group with a limit. `used_bytes` leaves out page cache that the kernel gives back at once."""

    source: str
    limit_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


def memory_groups(root: Path) -> list[MemoryGroup]:
    """The own group and its ancestors, those with a limit. `root` is `/` or a recorded machine. Empty without cgroups."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: list[MemoryGroup] = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                for folder in _ancestors(root / mount, path):
                    group = _version_2(root, folder)
                    if group is not None:
                        found.append(group)
        elif "memory" in controllers.split(","):
            for folder in _ancestors(root / "sys/fs/cgroup/memory", path):
                group = _version_1(root, folder)
                if group is not None:
                    found.append(group)
    return found


def _ancestors(mount: Path, path: str) -> list[Path]:
    """From the own group up to the mount. Inside a container the path may not exist below it; the mount itself does."""
    own = PurePosixPath(path.lstrip("/"))
    if ".." in own.parts:
        return [mount]
    return [mount / parent for parent in (own, *own.parents)] if own.parts else [mount]


def _version_2(root: Path, folder: Path) -> MemoryGroup | None:
    limits = [value for name in ("memory.max", "memory.high") if (value := _number(folder / name)) is not None]
    if not limits:
        return None
    used = _number(folder / "memory.current") or 0
    return MemoryGroup(_name(root, folder / "memory.max"), min(limits), used - _inactive_file(folder, used))


def _version_1(root: Path, folder: Path) -> MemoryGroup | None:
    limit = _number(folder / "memory.limit_in_bytes")
    if limit is None or limit >= NO_LIMIT_V1:
        return None
    used = _number(folder / "memory.usage_in_bytes") or 0
    return MemoryGroup(_name(root, folder / "memory.limit_in_bytes"), limit, used - _inactive_file(folder, used))


def _inactive_file(folder: Path, used: int) -> int:
    """Bytes of page cache that nobody has touched lately; at most what is used."""
    try:
        lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    stat = dict(line.split(maxsplit=1) for line in lines if " " in line)
    value = stat.get("total_inactive_file", stat.get("inactive_file", "0"))
    return min(used, int(value)) if value.isdigit() else 0


def _number(path: Path) -> int | None:
    """The file's number; None when it is missing, `max` or not a number."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _name(root: Path, path: Path) -> str:
    return "/" + path.relative_to(root).as_posix()
