"""How one request's ids are drawn: the request's own wishes over the checkpoint's defaults, every value checked.

Pure. The defaults come from the checkpoint (`config.GenerationDefaults`); this module knows no number of any model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from .refusals import FieldInvalid
from .wire import Sampling

MAX_LOGIT_BIASES = 1024
"""Entries of `logit_bias`; each is applied in every step."""

MAX_PENALTY = 2.0
"""Presence and frequency penalties lie within plus and minus this, as in OpenAI's API."""

MAX_LOGIT_BIAS = 100.0
"""Biases lie within plus and minus this, as in OpenAI's API."""


class SamplingDefaults(Protocol):
    """What the checkpoint says (`config.GenerationDefaults`)."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def min_p(self) -> float: ...
    @property
    def presence_penalty(self) -> float: ...
    @property
    def frequency_penalty(self) -> float: ...
    @property
    def repetition_penalty(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Resolved and valid. `top_k` 0 means all; `temperature` 0 means greedy."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logit_bias: dict[int, float] = field(default_factory=dict)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0


def resolve_sampling(
    asked: Sampling, defaults: SamplingDefaults, *, vocab_size: int, draw_seed: Callable[[], int]
) -> SamplingParams:
    """Fill in what was not asked for. Raises FieldInvalid for a value out of its range."""
    params = SamplingParams(
        temperature=_within("temperature", asked.temperature, defaults.temperature, 0.0, 100.0),
        top_p=_within("top_p", asked.top_p, defaults.top_p, 0.0, 1.0, above=True),
        top_k=_top_k(defaults.top_k if asked.top_k is None else asked.top_k),
        min_p=_within("min_p", asked.min_p, defaults.min_p, 0.0, 1.0),
        presence_penalty=_within(
            "presence_penalty", asked.presence_penalty, defaults.presence_penalty, -MAX_PENALTY, MAX_PENALTY
        ),
        frequency_penalty=_within(
            "frequency_penalty", asked.frequency_penalty, defaults.frequency_penalty, -MAX_PENALTY, MAX_PENALTY
        ),
        repetition_penalty=_within(
            "repetition_penalty", asked.repetition_penalty, defaults.repetition_penalty, 0.0, 100.0, above=True
        ),
        seed=draw_seed() if asked.seed is None else asked.seed,
        logit_bias=dict(asked.logit_bias),
    )
    if len(params.logit_bias) > MAX_LOGIT_BIASES:
        raise FieldInvalid("logit_bias", f"more than {MAX_LOGIT_BIASES} entries")
    for token_id, bias in params.logit_bias.items():
        if not 0 <= token_id < vocab_size:
            raise FieldInvalid("logit_bias", f"token id {token_id} is not below {vocab_size}")
        if not abs(bias) <= MAX_LOGIT_BIAS:
            raise FieldInvalid("logit_bias", f"the bias of token id {token_id} is beyond {MAX_LOGIT_BIAS:g}")
    return params


def _top_k(value: int) -> int:
    if value < -1:
        raise FieldInvalid("top_k", "must be at least 1, or 0 or -1 for all")
    return max(value, 0)


def _within(name: str, asked: float | None, default: float, low: float, high: float, *, above: bool = False) -> float:
    value = default if asked is None else asked
    # NaN fails every comparison, so it is refused too.
    if math.isfinite(value) and (low < value if above else low <= value) and value <= high:
        return float(value)
    raise FieldInvalid(name, f"must be {'above' if above else 'at least'} {low:g} and at most {high:g}")
