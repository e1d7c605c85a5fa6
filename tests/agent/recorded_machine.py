"""Writes the files of a recorded machine below a folder."""

from __future__ import annotations

from pathlib import Path


def record(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


MEMINFO = "MemTotal:       16303428 kB\nMemFree:         1212972 kB\nMemAvailable:   11860132 kB\nCached: 5 kB\n"

CPUINFO = "".join(
    f"""processor\t: {index}
vendor_id\t: GenuineIntel
model name\t: 12th Gen Intel(R) Core(TM) i7-1260P
physical id\t: 0
core id\t\t: {index // 2}
flags\t\t: fpu sse4_2 avx avx2 fma f16c avx_vnni

"""
    for index in range(4)
)

LAPTOP = {
    "proc/meminfo": MEMINFO,
    "proc/cpuinfo": CPUINFO,
    "proc/sys/kernel/hostname": "laptop\n",
    "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "sys/class/power_supply/AC/type": "Mains\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/status": "Discharging\n",
    "sys/class/power_supply/BAT0/power_now": "8520000\n",
    "sys/class/power_supply/mouse/type": "Battery\n",
    "sys/class/power_supply/mouse/scope": "Device\n",
    "sys/class/power_supply/mouse/status": "Discharging\n",
    "sys/class/power_supply/mouse/power_now": "1000\n",
}

RASPBERRY = {
    "proc/meminfo": "MemTotal: 8123456 kB\nMemAvailable: 7000000 kB\n",
    "proc/cpuinfo": "".join(
        f"processor\t: {i}\nFeatures\t: fp asimd asimddp crc32\nCPU part\t: 0xd0b\n\n" for i in range(4)
    )
    + "Model\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
}
