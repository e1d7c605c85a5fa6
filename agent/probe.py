"""What this machine is: processor, memory and its limits, graphics processors, battery. Every fact names its source.

Files are read below `root`, so that a recorded machine can stand in for this one. What cannot be found is None.
"""

from __future__ import annotations

import os
import platform
import re
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil

from shoal.proto.v1 import node_pb2

from .cgroup import memory_groups
from .gpu import GpuFact, find_gpus

T = TypeVar("T")

MAX_HEADROOM_BYTES = 2 << 30
MIN_HEADROOM_BYTES = 256 << 20
HEADROOM_RATIO = 0.1
"""What is left to the rest of the machine when no budget is given: a tenth of the memory, within these bounds."""

_X86_FLAGS = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
)
_ARM_FLAGS = ("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2")


@dataclass(frozen=True, slots=True)
class Fact(Generic[T]):
    """A value and where it is from: a file, a library call."""

    value: T
    source: str


@dataclass(frozen=True, slots=True)
class HardwareFacts:
    """All that the selection and the controller may know about the machine."""

    hostname: Fact[str]
    os: Fact[str]
    arch: Fact[str]
    cpu_model: Fact[str] | None
    physical_cores: Fact[int] | None
    logical_cores: Fact[int]
    instruction_sets: Fact[tuple[str, ...]] | None
    memory_total_bytes: Fact[int]
    memory_limit_bytes: Fact[int]
    """What processes here may use: all of it, or less under a control group."""
    memory_available_bytes: Fact[int]
    """What could be taken now without swapping, under every limit."""
    gpus: tuple[GpuFact, ...]
    has_battery: Fact[bool] | None

    def headroom_bytes(self) -> int:
        """What is left to others when no budget is given."""
        share = int(self.memory_limit_bytes.value * HEADROOM_RATIO)
        return min(MAX_HEADROOM_BYTES, max(MIN_HEADROOM_BYTES, share))

    def as_json(self) -> dict[str, Any]:
        """Plain mappings, each fact as value and source."""
        return asdict(self)

    def to_proto(self) -> node_pb2.Hardware:
        """As the controller hears it; unknown counts and names are empty there."""
        return node_pb2.Hardware(
            hostname=self.hostname.value,
            os=self.os.value,
            arch=self.arch.value,
            cpu_model="" if self.cpu_model is None else self.cpu_model.value,
            physical_cores=0 if self.physical_cores is None else self.physical_cores.value,
            logical_cores=self.logical_cores.value,
            memory_total_bytes=self.memory_total_bytes.value,
            memory_limit_bytes=self.memory_limit_bytes.value,
            gpus=[node_pb2.Gpu(name=gpu.name, memory_bytes=gpu.memory_bytes, driver=gpu.driver) for gpu in self.gpus],
            has_battery=self.has_battery is not None and self.has_battery.value,
        )


def probe(root: Path = Path("/"), *, nvml: bool = True) -> HardwareFacts:
    """Look at the machine. Never fails for want of a file."""
    total, available = _memory(root)
    limit = total
    for group in memory_groups(root):
        if group.limit_bytes < limit.value:
            limit = Fact(group.limit_bytes, group.source)
        if group.free_bytes < available.value:
            available = Fact(group.free_bytes, group.source)
    cpus = _cpuinfo(root)
    return HardwareFacts(
        hostname=_hostname(root),
        os=_os(root),
        arch=Fact(platform.machine(), "uname"),
        cpu_model=_cpu_model(cpus),
        physical_cores=_physical_cores(cpus),
        logical_cores=_logical_cores(cpus, root),
        instruction_sets=_instruction_sets(cpus),
        memory_total_bytes=total,
        memory_limit_bytes=limit,
        memory_available_bytes=available,
        gpus=tuple(find_gpus(root, nvml=nvml)),
        has_battery=_has_battery(root),
    )


def _memory(root: Path) -> tuple[Fact[int], Fact[int]]:
    """Total and available bytes of the machine, limits of groups not yet looked at."""
    text = _text(root / "proc/meminfo")
    if text is not None:
        kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
        if "MemTotal" in kib:
            # MemAvailable is missing before Linux 3.14: free and cache are the kernel's own approximation of it then.
            available = kib.get("MemAvailable", kib.get("MemFree", 0) + kib.get("Cached", 0))
            source = "/proc/meminfo"
            return Fact(kib["MemTotal"] * 1024, source), Fact(available * 1024, source)
    memory = psutil.virtual_memory()
    return Fact(int(memory.total), "psutil"), Fact(int(memory.available), "psutil")


def _cpuinfo(root: Path) -> list[dict[str, str]]:
    """One mapping a logical processor, empty off Linux."""
    text = _text(root / "proc/cpuinfo") or ""
    cpus = []
    for block in re.split(r"\n\s*\n", text):
        pairs = [line.partition(":") for line in block.splitlines() if ":" in line]
        fields = {name.strip(): value.strip() for name, _, value in pairs}
        if "processor" in fields:
            cpus.append(fields)
    return cpus


def _cpu_model(cpus: list[dict[str, str]]) -> Fact[str] | None:
    for name in ("model name", "Model", "cpu model"):
        if cpus and cpus[0].get(name):
            return Fact(cpus[0][name], "/proc/cpuinfo")
    model = platform.processor()
    return Fact(model, "platform") if model and model != platform.machine() else None


def _physical_cores(cpus: list[dict[str, str]]) -> Fact[int] | None:
    pairs = {(cpu["physical id"], cpu["core id"]) for cpu in cpus if "physical id" in cpu and "core id" in cpu}
    if pairs:
        return Fact(len(pairs), "/proc/cpuinfo")
    count = psutil.cpu_count(logical=False)
    return None if count is None else Fact(count, "psutil")


def _logical_cores(cpus: list[dict[str, str]], root: Path) -> Fact[int]:
    """Those that this process may run on; on a recorded machine, all of it."""
    if root == Path("/") and hasattr(os, "sched_getaffinity"):
        return Fact(len(os.sched_getaffinity(0)), "sched_getaffinity")
    if cpus:
        return Fact(len(cpus), "/proc/cpuinfo")
    return Fact(os.cpu_count() or 1, "os.cpu_count")


def _instruction_sets(cpus: list[dict[str, str]]) -> Fact[tuple[str, ...]] | None:
    """Extensions that matter to the kernels, those that every processor here has."""
    flags = [set((cpu.get("flags") or cpu.get("Features") or "").split()) for cpu in cpus]
    if not flags or not flags[0]:
        return None
    common = set.intersection(*flags)
    return Fact(tuple(flag for flag in _X86_FLAGS + _ARM_FLAGS if flag in common), "/proc/cpuinfo")


def _hostname(root: Path) -> Fact[str]:
    recorded = _text(root / "proc/sys/kernel/hostname")
    return Fact(recorded, "/proc/sys/kernel/hostname") if recorded else Fact(socket.gethostname(), "gethostname")


def _os(root: Path) -> Fact[str]:
    release = re.search(r'^PRETTY_NAME="?([^"\n]+)', _text(root / "etc/os-release") or "", re.MULTILINE)
    return Fact(release.group(1), "/etc/os-release") if release else Fact(platform.platform(), "platform")


def _has_battery(root: Path) -> Fact[bool] | None:
    try:
        supplies = sorted((root / "sys/class/power_supply").iterdir())
    except OSError:
        read = getattr(psutil, "sensors_battery", None)
        return None if read is None or root != Path("/") else Fact(read() is not None, "psutil")
    # A peripheral's battery (a mouse, say) has the scope Device.
    own = [supply for supply in supplies if _text(supply / "type") == "Battery" and _text(supply / "scope") != "Device"]
    return Fact(bool(own), "/sys/class/power_supply")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
