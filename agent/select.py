"""Which model this machine serves: the largest candidate that is there and fits the budget, and why no larger one. Pure.

Whether one fits is the engine's own plan: the same formulas that size its pools.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from shoal.runtime.config import EngineOptions, ModelLoadError
from shoal.runtime.plan import MemoryPlan, plan_memory

from .catalogue import Candidate
from .errors import NothingFits


class Outcome(StrEnum):
    """What became of a candidate."""

    CHOSEN = "chosen"
    SMALLER = "smaller"
    DOES_NOT_FIT = "does_not_fit"
    NOT_IN_STORE = "not_in_store"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that the engine may hold, and where the number is from."""

    num_bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One candidate. `needed_bytes` is the least that serves it: one sequence, the shortest context that is worth it."""

    candidate: Candidate
    outcome: Outcome
    reason: str
    needed_bytes: int | None = None
    plan: MemoryPlan | None = None
    """The plan within the budget, where it fits."""


@dataclass(frozen=True, slots=True)
class Selection:
    """All verdicts, largest model first. `chosen` is None when nothing can be served."""

    budget: Budget
    verdicts: tuple[Verdict, ...]

    @property
    def chosen(self) -> Verdict | None:
        return next((verdict for verdict in self.verdicts if verdict.outcome is Outcome.CHOSEN), None)

    @property
    def next_larger(self) -> Verdict | None:
        """The smallest candidate above the chosen one that memory excludes, in the store or not.

        Without a chosen one, the smallest that memory excludes at all.
        """
        chosen = self.chosen
        above = 0 if chosen is None else chosen.candidate.num_parameters
        excluded = [
            verdict
            for verdict in self.verdicts
            if verdict.outcome in (Outcome.DOES_NOT_FIT, Outcome.NOT_IN_STORE)
            and verdict.plan is None
            and verdict.candidate.num_parameters >= above
        ]
        return excluded[-1] if excluded else None

    def require(self) -> Verdict:
        """The chosen one. Raises NothingFits with the bytes, or with what is wrong with each candidate."""
        if self.chosen is not None:
            return self.chosen
        if not self.verdicts:
            raise NothingFits("there is no model to serve: shoal model pull qwen3.5-0.8b brings one")
        reasons = "; ".join(
            f"{verdict.candidate.name}: {verdict.reason}"
            for verdict in self.verdicts
            if verdict.outcome is not Outcome.NOT_IN_STORE
        )
        raise NothingFits(
            f"nothing can be served within {self.budget.num_bytes:,} bytes ({self.budget.source}): {reasons}"
        )


def select(candidates: Iterable[Candidate], budget: Budget, options: EngineOptions) -> Selection:
    """Judge every candidate. Deterministic: equal sizes go by their bytes, then by name."""
    ordered = sorted(
        candidates, key=lambda one: (-one.num_parameters, -one.checkpoint_bytes, one.name, str(one.directory))
    )
    verdicts: list[Verdict] = []
    is_chosen = False
    for one in ordered:
        verdict = _judge(one, budget, options, is_chosen)
        is_chosen = is_chosen or verdict.outcome is Outcome.CHOSEN
        verdicts.append(verdict)
    return Selection(budget, tuple(verdicts))


def _judge(one: Candidate, budget: Budget, options: EngineOptions, is_chosen: bool) -> Verdict:
    if one.config is None or one.problem:
        return Verdict(one, Outcome.UNUSABLE, one.problem)
    limited = replace(options, memory=budget.num_bytes)
    plan: MemoryPlan | None = None
    try:
        plan = plan_memory(one.config, limited, stored_format=one.stored_format)
        problem, needed = "", _least_bytes(one, options)
    except ModelLoadError as error:
        problem, needed = str(error), getattr(error, "needed", None)
        if needed is None:  # not for want of memory
            return Verdict(one, Outcome.UNUSABLE, problem)
    if one.directory is None:
        fits = "would fit" if plan is not None else "would not fit"
        text = f"not in the store; {fits}: needs {needed or 0:,} bytes at least"
        return Verdict(one, Outcome.NOT_IN_STORE, text, needed, plan)
    if plan is None:
        return Verdict(one, Outcome.DOES_NOT_FIT, problem, needed)
    if is_chosen:
        return Verdict(one, Outcome.SMALLER, "fits, and a larger one fits as well", needed, plan)
    reason = f"the largest that fits: {plan.total_bytes:,} of {budget.num_bytes:,} bytes planned"
    return Verdict(one, Outcome.CHOSEN, reason, needed, plan)


def _least_bytes(one: Candidate, options: EngineOptions) -> int | None:
    """What the smallest plan needs: asked of the planner itself, with a budget that cannot be enough."""
    assert one.config is not None
    try:
        return plan_memory(one.config, replace(options, memory=1), stored_format=one.stored_format).total_bytes
    except ModelLoadError as error:
        needed = getattr(error, "needed", None)
        return needed if isinstance(needed, int) else None


def selection_json(selection: Selection, native_isa: str) -> dict[str, Any]:
    """The selection as plain values, for `explain --json`. `native_isa`: what the native kernels take on this machine."""
    chosen, larger = selection.chosen, selection.next_larger
    return {
        "budget": {"bytes": selection.budget.num_bytes, "source": selection.budget.source},
        "chosen": None if chosen is None else verdict_json(chosen, native_isa),
        "next_larger": None if larger is None else verdict_json(larger, native_isa),
        "candidates": [verdict_json(verdict, native_isa) for verdict in selection.verdicts],
    }


def verdict_json(verdict: Verdict, native_isa: str) -> dict[str, Any]:
    """One verdict; absent values are null."""
    one, plan = verdict.candidate, verdict.plan
    return {
        "name": one.name,
        "size": one.size,
        "num_parameters": one.num_parameters,
        "checkpoint_bytes": one.checkpoint_bytes,
        "directory": None if one.directory is None else str(one.directory),
        "outcome": verdict.outcome.value,
        "reason": verdict.reason,
        "needed_bytes": verdict.needed_bytes,
        "plan": None
        if plan is None
        else {
            "backend": plan.backend,
            "format": plan.format,
            "isa": native_isa if plan.is_native else None,
            "total_bytes": plan.total_bytes,
            "by_pool": plan.by_pool(),
            "context": plan.context,
            "parallel": plan.num_slots,
            "num_blocks": plan.num_blocks,
            "block_tokens": plan.block_tokens,
        },
    }
