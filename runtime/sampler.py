"""One id out of one row of processed logits. numpy only; the same row, parameters and uniform always give the same id.

Ids are put in a fixed order: by logit, largest first, equal ones by id. In that order every filter keeps a prefix:

    min_p    p >= min_p * p_max
    top_k    the first k
    top_p    the fewest that together reach top_p of what the two before left

and the draw is the inverse of the cumulative distribution over the kept prefix at one uniform number (`philox.uniform`).
Temperature comes first. Weights are exp((l - l_max) / T) in f64 and are summed in the fixed order, so the result does not
depend on how much of the vocabulary was looked at.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .logit_processors import NEVER, Row
from .sampling_params import SamplingParams
from .step_result import Candidates

_FIRST_LOOK = 64
"""Ids put in order at first; eight times as many each time that they do not suffice. Full sorts of a quarter of a million
logits are what this avoids; the result is the same for every value."""

_GROUP = 256
"""Ids whose peak is taken first where few of very many are wanted."""

MAX_CANDIDATES = 256
"""What a back end finds at most without writing the whole row."""

Ids = npt.NDArray[np.intp]


class NotFinite(Exception):
    """The row has no largest finite logit: the model's arithmetic overflowed."""


def greedy(logits: Row) -> int:
    """The id with the largest logit, the lowest of equals."""
    return int(np.argmax(logits))


def largest(logits: Row, count: int) -> Ids:
    """The `count` largest in the fixed order: by logit, largest first, equal ones by id."""
    count = min(count, len(logits))
    if count == 0:
        return np.zeros(0, dtype=np.intp)
    ids = np.flatnonzero(logits >= _threshold(logits, count))  # ascending, at least `count`, seldom many more
    return ids[np.argsort(-logits[ids], kind="stable")][:count]


def _threshold(logits: Row, count: int) -> np.float32:
    """A value that at least `count` logits reach, and few others."""
    num_groups = len(logits) // _GROUP
    if 2 * count <= num_groups:
        # The count-th largest of the groups' peaks: a tenth of the time of a selection among all.
        logits = logits[: num_groups * _GROUP].reshape(num_groups, _GROUP).max(axis=1)
    place = len(logits) - count
    result: np.float32 = np.partition(logits, place)[place]
    return result


def sample(logits: Row, params: SamplingParams, uniform: float) -> int:
    """Draw an id; `uniform` lies in [0, 1). Raises NotFinite when the largest logit is NaN or infinite."""
    peak = float(logits.max())
    if not math.isfinite(peak):
        raise NotFinite
    if params.is_greedy:
        return greedy(logits)
    num_allowed = int(np.count_nonzero(logits > NEVER))
    limit = _limit(logits, peak, params, num_allowed)
    if limit < num_allowed or 0 < params.top_k <= MAX_CANDIDATES:
        # The same sums as `sample_candidates`, also where there are no more ids than top_k.
        total, look = None, limit
    else:
        # Every id stays: the first few in order nearly always suffice, once the weight of all is known.
        total, look = float(_weights(logits, peak, params).sum()), min(limit, _FIRST_LOOK)
    while True:
        ids = largest(logits, look)
        cumulative = np.cumsum(_weights(logits[ids], peak, params))
        mass = float(cumulative[-1]) if total is None else total
        place = _place(cumulative, mass, params.top_p, uniform, is_all=look == limit)
        if place is not None:
            return int(ids[place])
        look = min(limit, 8 * look)


def sample_candidates(candidates: Candidates, params: SamplingParams, uniform: float) -> int:
    """What `sample` draws from the whole row, for parameters of which `num_candidates` best ids are enough. Raises NotFinite."""
    peak = candidates.logits[0]
    if not math.isfinite(peak) or math.isnan(candidates.logits[-1]):
        raise NotFinite
    if params.is_greedy:
        return candidates.ids[0]
    logits = np.array(candidates.logits, dtype=np.float32)
    num_allowed = len(logits) if logits[-1] > NEVER else int(np.count_nonzero(logits > NEVER))
    cumulative = _weights(logits[: _limit(logits, peak, params, num_allowed)], peak, params).cumsum()
    place = _place(cumulative, float(cumulative[-1]), params.top_p, uniform, is_all=True)
    assert place is not None
    return candidates.ids[place]


def num_candidates(params: SamplingParams) -> int | None:
    """So many best ids are enough to draw from; None where the whole row is needed."""
    if params.is_greedy:
        return 1
    return params.top_k if 0 < params.top_k <= MAX_CANDIDATES else None


def _limit(logits: Row, peak: float, params: SamplingParams, num_allowed: int) -> int:
    """So many of the first ids in order stay after top_k and min_p; `logits` may be the best top_k of them alone."""
    limit = min(params.top_k or num_allowed, num_allowed)
    if params.min_p > 0.0:
        lowest = np.float64(peak + params.temperature * math.log(params.min_p))
        limit = min(limit, max(int(np.count_nonzero(logits >= lowest)), 1))
    return limit


def _place(
    cumulative: npt.NDArray[np.float64], mass: float, top_p: float, uniform: float, *, is_all: bool
) -> int | None:
    """Where the draw falls among the ids looked at, or None when more are needed (never with `is_all`)."""
    last = int(cumulative.searchsorted(cumulative[-1]))  # beyond it, weights have vanished
    if top_p < 1.0:
        cut = int(cumulative.searchsorted(top_p * mass))
        if cut >= len(cumulative) and not is_all:
            return None
        last = min(cut, last)
        mass = float(cumulative[last])
    place = int(cumulative.searchsorted(uniform * mass, side="right"))
    if place >= len(cumulative) and not is_all:
        return None
    return min(place, last)


def _weights(logits: Row, peak: float, params: SamplingParams) -> npt.NDArray[np.float64]:
    # In f64 throughout: a tiny temperature makes weights of 0, never a NaN.
    weights: npt.NDArray[np.float64] = np.exp((logits.astype(np.float64) - peak) / params.temperature)
    return weights
