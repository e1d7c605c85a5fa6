"""The engine's options and the sampling options of the command line, as decorators for click commands that load a model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from .errors import OptionInvalid
from .options import CLI_OPTIONS, EngineOptions

Command = TypeVar("Command", bound=Callable[..., Any])

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,6})?)\s*([a-zA-Z]*)")

MAX_SIZE_BYTES = 1 << 60


class SizeType(click.ParamType[int]):
    """Bytes as `4GiB`, `1.5GB`, `500MB` or a plain number."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SIZE.fullmatch(str(value).strip())
        unit = None if match is None else _UNITS.get(match.group(2).lower())
        if match is None or unit is None:
            self.fail(f"{value!r} is not a size like 4GiB, 500MB or 1073741824", param, ctx)
        number = match.group(1)
        size = int(float(number) * unit) if "." in number else int(number) * unit
        if not 0 < size <= MAX_SIZE_BYTES:
            self.fail(f"{value!r} is not between one byte and {MAX_SIZE_BYTES:,} bytes", param, ctx)
        return size


def engine_options(command: Command) -> Command:
    """Adds the engine's options; they arrive as keyword arguments, for `take_engine_options`."""
    for option in reversed(CLI_OPTIONS):
        kind: click.ParamType[Any] = SizeType() if option.is_size else click.IntRange(min=1)
        if option.choices:
            kind = click.Choice(option.choices)
        metavar = None if option.choices else "SIZE" if option.is_size else "N"
        flag = f"--{option.name.replace('_', '-')}"
        command = click.option(flag, type=kind, metavar=metavar, help=option.help)(command)
    return command


def take_engine_options(values: dict[str, Any]) -> EngineOptions:
    """Take them out of a command's keyword arguments; what was not given keeps its default. Raises click.UsageError."""
    given = {option.name: values.pop(option.name) for option in CLI_OPTIONS}
    try:
        return EngineOptions.from_mapping({name: value for name, value in given.items() if value is not None})
    except OptionInvalid as error:
        raise click.UsageError(f"--{str(error).replace('_', '-', 1)}") from error


_SAMPLING_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--temperature", type=float, help="0 takes the likeliest token each time."),
    click.option("--top-p", type=float, help="Fewest tokens that together reach this probability."),
    click.option("--top-k", type=int, help="So many likeliest tokens; 0 for all."),
    click.option("--min-p", type=float, help="Tokens at least this likely, relative to the likeliest."),
    click.option("--seed", type=int, help="The same seed gives the same answer.  [default: another each time]"),
    click.option("--presence-penalty", type=float, help="Off the logits of ids that the answer has."),
    click.option("--frequency-penalty", type=float, help="The same, as often as it has them."),
    click.option("--repetition-penalty", type=float, help="Divides the logits of ids in prompt and answer."),
)
SAMPLING_OPTION_NAMES = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


def sampling_options(command: Command) -> Command:
    """Adds the sampling options; what is not given is the checkpoint's default."""
    for option in reversed(_SAMPLING_OPTIONS):
        command = option(command)
    return command
