"""The command line's words as values: sizes like 4GiB, the engine's options, SHOAL_HOME."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import platformdirs

from shoal.runtime.config import EngineOptions, OptionInvalid

from .errors import BadOption

_UNITS = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1000,
    "m": 1000**2,
    "mb": 1000**2,
    "g": 1000**3,
    "gb": 1000**3,
    "t": 1000**4,
    "tb": 1000**4,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,6})?)\s*([a-zA-Z]*)")

MAX_SIZE_BYTES = 1 << 60

Command = TypeVar("Command", bound=Callable[..., Any])


def parse_size(text: str) -> int:
    """Bytes of `4GiB`, `1.5GB`, `500MB`, `1024`. Powers of 1024 have an i, powers of 1000 none. Raises BadOption."""
    match = _SIZE.fullmatch(text.strip())
    unit = None if match is None else _UNITS.get(match.group(2).lower())
    if match is None or unit is None:
        raise BadOption(f"{text!r} is not a size like 4GiB, 500MB or 1073741824")
    size = int(float(match.group(1)) * unit) if "." in match.group(1) else int(match.group(1)) * unit
    if not 0 < size <= MAX_SIZE_BYTES:
        raise BadOption(f"{text!r} is not between one byte and {MAX_SIZE_BYTES:,} bytes")
    return size


class SizeType(click.ParamType[int]):
    """A number of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        try:
            return parse_size(str(value))
        except BadOption as error:
            self.fail(str(error), param, ctx)


def shoal_home(home: Path | None = None) -> Path:
    """The folder of everything that shoal keeps: what was given, `$SHOAL_HOME`, else the platform's user data directory."""
    return home or Path(os.environ.get("SHOAL_HOME") or platformdirs.user_data_dir("shoal"))


# What a choice may be is the engine's to say: `to_engine_options` refuses the rest with the list of what there is.
_ENGINE_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--backend", metavar="NAME", help="What computes.  [default: auto]"),
    click.option("--dtype", metavar="f32|bf16", help="Arithmetic of the reference back end.  [default: f32]"),
    click.option("--format", metavar="NAME", help="Weights as served.  [default: auto]"),
    click.option("--kv-format", metavar="NAME", help="Keys and values in the cache.  [default: auto]"),
    click.option("--context", type=click.IntRange(min=1), metavar="N", help="Tokens of prompt and answer together."),
    click.option(
        "--parallel", type=click.IntRange(min=1), metavar="N", help="Sequences decoded side by side.  [default: 16]"
    ),
    click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads of the engine."),
    click.option(
        "--memory", type=SizeType(), metavar="SIZE", help="Budget, for example 4GiB.  [default: what the machine has]"
    ),
    click.option("--isa", metavar="NAME", help="Instruction set of the native kernels, for tests."),
)


def engine_options(command: Command) -> Command:
    """Adds the engine's options; they arrive as keyword arguments for `to_engine_options`."""
    for option in reversed(_ENGINE_OPTIONS):
        command = option(command)
    return command


def to_engine_options(values: dict[str, Any]) -> EngineOptions:
    """What was given; the rest keeps the engine's own defaults. Raises BadOption."""
    chosen = {name: value for name, value in values.items() if value is not None}
    try:
        return EngineOptions.from_mapping(chosen)
    except OptionInvalid as error:
        raise BadOption(f"--{str(error).replace('_', '-', 1)}") from error
