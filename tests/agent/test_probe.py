"""Facts of recorded machines, each with its source, and of this one."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from shoal.agent.cgroup import memory_groups
from shoal.agent.gpu import GpuFact, find_gpus
from shoal.agent.probe import MAX_HEADROOM_BYTES, MIN_HEADROOM_BYTES, Fact, probe

from .recorded_machine import LAPTOP, MEMINFO, RASPBERRY, record

MIB = 1 << 20


def test_a_laptop(tmp_path: Path) -> None:
    facts = probe(record(tmp_path, LAPTOP))
    assert facts.hostname == Fact("laptop", "/proc/sys/kernel/hostname")
    assert facts.os == Fact("Debian GNU/Linux 12 (bookworm)", "/etc/os-release")
    assert facts.cpu_model == Fact("12th Gen Intel(R) Core(TM) i7-1260P", "/proc/cpuinfo")
    assert facts.physical_cores == Fact(2, "/proc/cpuinfo") and facts.logical_cores == Fact(4, "/proc/cpuinfo")
    assert facts.instruction_sets is not None
    assert facts.instruction_sets.value == ("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni")
    assert facts.memory_total_bytes == Fact(16303428 * 1024, "/proc/meminfo") == facts.memory_limit_bytes
    assert facts.memory_available_bytes == Fact(11860132 * 1024, "/proc/meminfo")
    assert facts.has_battery == Fact(True, "/sys/class/power_supply")
    assert facts.gpus == ()
    proto = facts.to_proto()
    assert (proto.hostname, proto.physical_cores, proto.logical_cores, proto.has_battery) == ("laptop", 2, 4, True)
    assert proto.memory_limit_bytes == 16303428 * 1024
    assert json.loads(json.dumps(facts.as_json()))["cpu_model"]["source"] == "/proc/cpuinfo"


def test_an_arm_board(tmp_path: Path) -> None:
    facts = probe(record(tmp_path, RASPBERRY))
    assert facts.logical_cores == Fact(4, "/proc/cpuinfo")
    assert facts.instruction_sets is not None and facts.instruction_sets.value == ("asimd", "asimddp")


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    facts = probe(tmp_path)
    assert facts.memory_total_bytes.source == "psutil" and facts.memory_total_bytes.value > 0
    assert facts.instruction_sets is None and facts.has_battery is None and facts.gpus == ()
    assert facts.to_proto().has_battery is False


def test_this_machine() -> None:
    facts = probe()
    assert facts.memory_total_bytes.value == pytest.approx(psutil.virtual_memory().total, rel=0.01)
    assert 0 < facts.memory_available_bytes.value <= facts.memory_limit_bytes.value <= facts.memory_total_bytes.value
    assert facts.logical_cores.value >= 1


def test_headroom_is_a_tenth_within_bounds(tmp_path: Path) -> None:
    facts = probe(record(tmp_path, {"proc/meminfo": "MemTotal: 1048576 kB\nMemAvailable: 1000 kB\n"}))
    assert facts.headroom_bytes() == MIN_HEADROOM_BYTES
    facts = probe(record(tmp_path, {"proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 1000 kB\n"}))
    assert facts.headroom_bytes() == (8 << 30) // 10
    facts = probe(record(tmp_path, {"proc/meminfo": "MemTotal: 268435456 kB\nMemAvailable: 1000 kB\n"}))
    assert facts.headroom_bytes() == MAX_HEADROOM_BYTES


def test_a_container_under_version_2(tmp_path: Path) -> None:
    """The parent's limit is tighter than the own one, and inactive page cache does not count as used."""
    record(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/slice/box\n",
            "sys/fs/cgroup/slice/memory.max": f"{512 * MIB}\n",
            "sys/fs/cgroup/slice/memory.current": f"{300 * MIB}\n",
            "sys/fs/cgroup/slice/memory.stat": f"anon 1\ninactive_file {100 * MIB}\n",
            "sys/fs/cgroup/slice/box/memory.max": f"{1024 * MIB}\n",
            "sys/fs/cgroup/slice/box/memory.current": f"{300 * MIB}\n",
            "sys/fs/cgroup/memory.stat": "anon 1\n",
        },
    )
    facts = probe(tmp_path)
    assert facts.memory_limit_bytes == Fact(512 * MIB, "/sys/fs/cgroup/slice/memory.max")
    assert facts.memory_available_bytes == Fact(312 * MIB, "/sys/fs/cgroup/slice/memory.max")
    assert facts.memory_total_bytes.value == 16303428 * 1024


def test_version_2_seen_from_inside_a_container(tmp_path: Path) -> None:
    """The path of the own group is `/` and the limit stands in the mount itself; `memory.high` counts too."""
    record(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/fs/cgroup/memory.high": f"{256 * MIB}\n",
            "sys/fs/cgroup/memory.current": f"{300 * MIB}\n",
        },
    )
    (group,) = memory_groups(tmp_path)
    assert (group.limit_bytes, group.free_bytes) == (256 * MIB, 0)


def test_a_container_under_version_1(tmp_path: Path) -> None:
    record(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": f"{700 * MIB}\n",
            "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": f"{600 * MIB}\n",
            "sys/fs/cgroup/memory/docker/abc/memory.stat": f"cache 5\ntotal_inactive_file {50 * MIB}\n",
        },
    )
    facts = probe(tmp_path)
    assert facts.memory_limit_bytes.value == 700 * MIB
    assert facts.memory_limit_bytes.source == "/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes"
    assert facts.memory_available_bytes.value == 150 * MIB


@pytest.mark.parametrize("text", ["", "garbage\n", "0::/../..\n", "4:memory:/../x\n0::/x\n"])
def test_groups_without_limits(text: str, tmp_path: Path) -> None:
    record(tmp_path, {"proc/self/cgroup": text, "sys/fs/cgroup/memory.max": "max\n"})
    assert memory_groups(tmp_path) == []


def test_graphics_of_the_kernel(tmp_path: Path) -> None:
    record(
        tmp_path,
        {
            "sys/class/drm/card0/device/vendor": "0x1002\n",
            "sys/class/drm/card0/device/device": "0x744c\n",
            "sys/class/drm/card0/device/mem_info_vram_total": "25753026560\n",
            "sys/class/drm/card0/device/uevent": "DRIVER=amdgpu\nPCI_CLASS=30000\n",
            "sys/class/drm/card0-HDMI-A-1/device/vendor": "0x1002\n",
            "sys/class/drm/card1/device/vendor": "0x8086\n",
            "sys/class/drm/card1/device/device": "0x46a6\n",
            "sys/class/drm/version": "x\n",
        },
    )
    assert find_gpus(tmp_path) == [
        GpuFact("AMD 0x744c", 25753026560, "amdgpu", "/sys/class/drm/card0/device"),
        GpuFact("Intel 0x46a6", 0, "", "/sys/class/drm/card1/device"),
    ]


def test_a_driver_whose_library_does_not_answer(tmp_path: Path) -> None:
    """The driver's own files still name the card; its display entry is not a second one."""
    record(
        tmp_path,
        {
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23\n",
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 1\n",
            "proc/driver/nvidia/gpus/0000:02:00.0/information": "IRQ: 1\n",
            "sys/class/drm/card0/device/vendor": "0x10de\n",
        },
    )
    source = "/proc/driver/nvidia/gpus/0000:01:00.0/information"
    assert find_gpus(tmp_path) == [GpuFact("NVIDIA H100 80GB HBM3", 0, "570.86.15", source)]
