"""The engine's options and the sampling options of the command line, as decorators for click commands that load a model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from .errors import OptionInvalid
from .options import BACKENDS, DEFAULT_PARALLEL, DTYPES, FORMATS, ISAS, KV_FORMATS, EngineOptions

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


_ENGINE_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--backend", type=click.Choice(BACKENDS), help="What computes.  [default: auto]"),
    click.option("--dtype", type=click.Choice(DTYPES), help="Arithmetic of the reference back end.  [default: f32]"),
    click.option("--format", type=click.Choice(FORMATS), help="Weights as served.  [default: auto]"),
    click.option("--kv-format", type=click.Choice(KV_FORMATS), help="Keys and values in the cache.  [default: auto]"),
    click.option("--context", type=click.IntRange(min=1), metavar="N", help="Tokens of prompt and answer together."),
    click.option(
        "--parallel",
        type=click.IntRange(min=1),
        metavar="N",
        help=f"Sequences decoded side by side.  [default: {DEFAULT_PARALLEL}]",
    ),
    click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads of a step."),
    click.option("--memory", type=SizeType(), metavar="SIZE", help="Budget of everything, for example 4GiB."),
    click.option("--isa", type=click.Choice(ISAS), help="Instruction set of native kernels, for tests."),
)
ENGINE_OPTION_NAMES = ("backend", "dtype", "format", "kv_format", "context", "parallel", "threads", "memory", "isa")


def engine_options(command: Command) -> Command:
    """Adds the engine's options; they arrive as keyword arguments, for `take_engine_options`."""
    for option in reversed(_ENGINE_OPTIONS):
        command = option(command)
    return command


def take_engine_options(values: dict[str, Any]) -> EngineOptions:
    """Take them out of a command's keyword arguments; what was not given keeps its default. Raises click.UsageError."""
    given = {name: values.pop(name) for name in ENGINE_OPTION_NAMES}
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
