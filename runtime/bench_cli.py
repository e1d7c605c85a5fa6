"""`shoal bench`: prefill and decode of a model on this machine, in tokens a second."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from .errors import RuntimeFault
from .model_dirs import resolve_model
from .options_cli import engine_options, take_engine_options
from .thread_waiting import wait_passively


@click.command()
@click.argument("model", metavar="NAME|DIR")
@click.option(
    "--prompt", type=click.IntRange(min=0), default=512, show_default=True, help="Prompt tokens; 0: no prefill."
)
@click.option("--gen", type=click.IntRange(min=0), default=128, show_default=True, help="Ids to draw; 0: no decode.")
@click.option(
    "--depth", type=click.IntRange(min=0), default=0, show_default=True, help="Tokens before what is measured."
)
@click.option("--repetitions", type=click.IntRange(1, 1000), default=5, show_default=True, help="After a warm-up.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@engine_options
def bench(model: str, prompt: int, gen: int, depth: int, repetitions: int, as_json: bool, **values: Any) -> None:
    """Time prefill and decode through the engine's step loop.

    Decodes --parallel sequences side by side, one unless told otherwise. Figures are medians over the repetitions.
    """
    if not prompt and not gen:
        raise click.UsageError("give --prompt or --gen")
    parallel = values["parallel"] = values["parallel"] or 1
    options = take_engine_options(values)
    wait_passively()
    from . import bench as measure
    from .engine import MAX_PREFILL_BESIDE_DECODE
    from .loading import load_engine

    needed = max(
        depth + prompt + 1 if prompt else 0,
        measure.decode_room(gen, depth, parallel, MAX_PREFILL_BESIDE_DECODE) if gen else 0,
    )
    try:
        loaded = load_engine(resolve_model(model), options if options.context else replace(options, context=needed))
        engine = loaded.engine
        loaded.backend.make_present()
        if engine.intake.max_model_len < needed:
            raise click.ClickException(f"needs a context of {needed} tokens; it is {engine.intake.max_model_len}")
        report: dict[str, Any] = {
            "model": model,
            "backend": loaded.plan.backend,
            "format": loaded.plan.format,
            "kv_format": loaded.plan.kv_format,
            "isa": loaded.backend.isa,
            "threads": loaded.backend.threads,
            "parallel": parallel,
            "depth": depth,
            "load_s": round(loaded.load_s, 3),
            "prefill": measure.repeat(lambda seed: measure.prefill(engine, prompt, depth, seed), repetitions)
            if prompt
            else None,
            "decode": measure.repeat(lambda seed: measure.decode(engine, gen, depth, parallel, seed), repetitions)
            if gen
            else None,
        }
    except RuntimeFault as fault:
        raise click.ClickException(str(fault)) from fault
    host = engine.stats.host_s
    report["host_s_per_step"] = round(host.total / max(sum(host.counts), 1), 7)
    report |= origin()
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(f"{model}: {report['backend']}, {report['format']}, {report['isa']}, {report['threads']} thread(s)")
    for name in ("prefill", "decode"):
        if report[name] is not None:
            click.echo(f"  {name:<8} {report[name]['tokens_per_s']:>10,.1f} tokens/s")


def origin() -> dict[str, Any]:
    """Where figures come from: time, machine, versions, and the commit of a checkout."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": processor_name(),
            "processors": os.cpu_count(),
            "system": platform.platform(terse=True),
        },
        "versions": {"python": platform.python_version(), "shoal": metadata.version("shoal")},
        "commit": checkout_commit(),
    }


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """As the system names it."""
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def checkout_commit() -> str | None:
    """Of the checkout that this runs from; None where it is installed without one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
