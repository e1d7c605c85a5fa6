"""The files that the contestants run, made when they are first needed: random weights of the published shapes.

They lie in build/bench/models, or where SHOAL_BENCH_MODELS says; tens of gigabytes for all sizes and formats.
"""

import os
import subprocess
import sys
from pathlib import Path

import report

from shoal.runtime.config import ModelConfig
from shoal.runtime.sizes import published_config


class ModelMissing(Exception):
    """A file could not be made; the message is the tool's last words."""


def folder() -> Path:
    return Path(os.environ.get("SHOAL_BENCH_MODELS") or report.ROOT / "build" / "bench" / "models")


def config_of(size: str) -> ModelConfig:
    return ModelConfig.from_mapping(published_config(size))


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ModelMissing(f"{' '.join(command[:4])} ...: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")


def gguf_file(size: str, type_name: str) -> Path:
    """A GGUF file of `size`. Raises ModelMissing."""
    path = folder() / f"{size}-{type_name}.gguf"
    if not path.exists():
        script = Path(__file__).with_name("write_gguf.py")
        run(sys.executable, str(script), "--size", size, "--type", type_name, "--out", str(path))
    return path


def shoal_directory(size: str, format: str) -> Path:
    """A checkpoint of ours. Raises ModelMissing."""
    path = folder() / f"{size}-{format}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        run(shoal(), "model", "synth", "--size", size, "--format", format, "--out", str(path))
    return path


def shoal() -> str:
    """The command of the environment that runs this."""
    return str(Path(sys.executable).with_name("shoal"))
