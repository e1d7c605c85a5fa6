"""`shoal explain`: the selection on this machine, for people and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoal.runtime.config import EngineOptions, OptionInvalid
from shoal.runtime.plan import native_isa

from .catalogue import published
from .errors import BadOption
from .probe import probe
from .select import select, selection_json
from .service import budget_of, candidates_of
from .store import Store

GIB = 1 << 30


def explanation(home: Path, models: Sequence[str], options: EngineOptions, root: Path = Path("/")) -> dict[str, Any]:
    """What would be chosen, what excludes the rest, and the facts it rests on. Raises ModelNotFound, BadOption."""
    hardware = probe(root)
    candidates = candidates_of(Store.at_home(home), models)
    candidates += published(names_taken=[candidate.name for candidate in candidates])
    selection = select(candidates, budget_of(options, hardware), options)
    try:
        isa = native_isa(options.isa)
    except OptionInvalid as error:
        raise BadOption(f"--{error}") from error
    return {**selection_json(selection, isa), "hardware": hardware.as_json()}


def explanation_text(content: dict[str, Any]) -> str:
    """The same for a terminal."""
    budget, chosen, larger = content["budget"], content["chosen"], content["next_larger"]
    lines = [f"budget        {_gib(budget['bytes'])} ({budget['bytes']:,} bytes): {budget['source']}"]
    if chosen is None:
        lines.append("would serve   nothing: no model of the store fits")
    else:
        plan = chosen["plan"]
        pools = ", ".join(f"{pool} {_gib(size)}" for pool, size in plan["by_pool"].items())
        lines += [
            f"would serve   {chosen['name']} from {chosen['directory']}",
            f"              {_gib(plan['total_bytes'])} ({plan['total_bytes']:,} bytes) planned: {pools}",
            f"              back end {plan['backend']}{_isa_words(plan['isa'])}, weights {plan['format']}",
            f"              {plan['context']:,} tokens a sequence, {plan['parallel']} sequences side by side, "
            f"{plan['num_blocks'] * plan['block_tokens']:,} tokens in all",
        ]
    if larger is not None:
        needed = larger["needed_bytes"] or 0
        lines.append(
            f"not larger    {larger['name']} needs {_gib(needed)} ({needed:,} bytes) at least, "
            f"{_gib(max(0, needed - budget['bytes']))} more than the budget"
        )
    lines += ["", "candidates"]
    for one in content["candidates"]:
        needed = "" if one["needed_bytes"] is None else _gib(one["needed_bytes"])
        lines.append(f"  {one['name']:<20} {one['outcome']:<13} {needed:>11}  {one['reason']}")
    facts = content["hardware"]
    lines += ["", "machine"]
    for name, fact in facts.items():
        if isinstance(fact, dict):
            value = fact["value"]
            shown = (
                _gib(value)
                if name.endswith("_bytes")
                else " ".join(value)
                if isinstance(value, tuple | list)
                else value
            )
            lines.append(f"  {name:<24} {shown}  ({fact['source']})")
    for gpu in facts["gpus"]:
        lines.append(f"  {'gpu':<24} {gpu['name']}, {_gib(gpu['memory_bytes'])}  ({gpu['source']})")
    return "\n".join(lines)


def _isa_words(isa: str | None) -> str:
    return "" if isa is None else f" ({isa})"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / (1 << 20):.1f} MiB"
