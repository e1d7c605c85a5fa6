"""The command line's words as values: sizes like 4GiB, the engine's options, SHOAL_HOME."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import platformdirs

from shoal.runtime.config import CLI_OPTIONS, EngineOptions, OptionInvalid

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


def engine_options(command: Command) -> Command:
    """Adds the engine's options; they arrive as keyword arguments for `to_engine_options`."""
    for option in reversed(CLI_OPTIONS):
        kind: click.ParamType[Any] = SizeType() if option.is_size else click.IntRange(min=1)
        if option.choices:
            kind = click.Choice(option.choices)
        metavar = None if option.choices else "SIZE" if option.is_size else "N"
        help_text = option.help + ("  [default: what the machine has]" if option.is_size else "")
        flag = f"--{option.name.replace('_', '-')}"
        command = click.option(flag, type=kind, metavar=metavar, help=help_text)(command)
    return command


def to_engine_options(values: dict[str, Any]) -> EngineOptions:
    """What was given; the rest keeps the engine's own defaults. Raises BadOption."""
    chosen = {name: value for name, value in values.items() if value is not None}
    try:
        return EngineOptions.from_mapping(chosen)
    except OptionInvalid as error:
        raise BadOption(f"--{str(error).replace('_', '-', 1)}") from error
