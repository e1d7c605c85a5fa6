"""What every benchmark's JSON says of where its numbers come from: machine, versions, commit."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def processor():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git(*arguments):
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else None


def header(benchmark, *packages):
    """The report's first keys; `packages` are named with their versions."""
    return {
        "benchmark": benchmark,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "--short=12", "HEAD") or "unknown",
        "changed_files": len((git("status", "--porcelain", "--untracked-files=no") or "").splitlines()),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform(terse=True)},
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("shoal", *packages)},
    }


def write(report, out=None):
    """As JSON to `out`, by default build/bench/<benchmark>-<commit>.json; returns the path."""
    out = out or ROOT / "build" / "bench" / f"{report['benchmark']}-{report['commit']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    return out
