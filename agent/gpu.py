"""Graphics processors: NVIDIA's through its management library, others from the kernel's files. None found means none known.

The management library runs in a child with a deadline: a driver that hangs or crashes is a fact, not the end of the agent.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

NVML_DEADLINE_S = 3.0
MAX_GPUS = 64

_NVML_CHILD = """
import json
import pynvml
pynvml.nvmlInit()
driver = pynvml.nvmlSystemGetDriverVersion()
found = []
for index in range(pynvml.nvmlDeviceGetCount()):
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    found.append([pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle).total, driver])
print(json.dumps(found))
"""

_VENDORS = {"0x1002": "AMD", "0x10de": "NVIDIA", "0x8086": "Intel"}
_CARD = re.compile(r"card\d+")


@dataclass(frozen=True, slots=True)
class GpuFact:
    """`memory_bytes` is 0 where it is shared with the processor or not told."""

    name: str
    memory_bytes: int
    driver: str
    source: str


def find_gpus(root: Path, *, nvml: bool = True) -> list[GpuFact]:
    """All that can be seen. `nvml` False keeps to the files below `root`."""
    seen = _ask_nvml() if nvml and (root / "proc/driver/nvidia/version").exists() else []
    seen = seen or _nvidia_driver_files(root)
    for device in _drm_devices(root):
        vendor = _text(device / "vendor")
        if vendor is None or (seen and _VENDORS.get(vendor) == "NVIDIA"):
            continue
        total = _text(device / "mem_info_vram_total")
        seen.append(
            GpuFact(
                name=f"{_VENDORS.get(vendor, vendor)} {_text(device / 'device') or ''}".strip(),
                memory_bytes=int(total) if total is not None and total.isdigit() else 0,
                driver=_driver(device),
                source="/" + device.relative_to(root).as_posix(),
            )
        )
    return seen[:MAX_GPUS]


def _ask_nvml() -> list[GpuFact]:
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-c", _NVML_CHILD],
            capture_output=True,
            timeout=NVML_DEADLINE_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        rows = json.loads(child.stdout)
        return [GpuFact(str(name), int(total), str(driver), "nvml") for name, total, driver in rows]
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return []  # no library, no permission, a hanging driver: not known


def _nvidia_driver_files(root: Path) -> list[GpuFact]:
    """What the kernel driver tells without its library: names, no sizes."""
    version = re.search(r"Kernel Module\D*\s(\d[\d.]*)", _text(root / "proc/driver/nvidia/version") or "")
    found = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))[:MAX_GPUS]:
        model = re.search(r"^Model:\s*(\S.*)$", _text(path) or "", re.MULTILINE)
        if model is not None:
            driver = version.group(1) if version is not None else ""
            found.append(GpuFact(model.group(1), 0, driver, "/" + path.relative_to(root).as_posix()))
    return found


def _drm_devices(root: Path) -> list[Path]:
    """Device folders of the cards, connectors left out."""
    try:
        cards = sorted(card for card in (root / "sys/class/drm").iterdir() if _CARD.fullmatch(card.name))
    except OSError:
        return []
    return [card / "device" for card in cards[:MAX_GPUS]]


def _driver(device: Path) -> str:
    for line in (_text(device / "uevent") or "").splitlines():
        if line.startswith("DRIVER="):
            return line.removeprefix("DRIVER=")
    return ""


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
