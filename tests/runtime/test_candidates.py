"""The best few ids instead of the whole row: the same draw, bit for bit."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.runtime.logit_processors import logit_chain
from shoal.runtime.sampler import NotFinite, num_candidates, sample, sample_candidates
from shoal.runtime.sampling_params import SamplingParams
from shoal.runtime.step_result import Candidates

Row = npt.NDArray[np.float32]


def best(logits: Row, count: int) -> Candidates:
    ids = np.lexsort((np.arange(len(logits)), -logits))[:count].astype(np.int32)
    return Candidates(ids.tolist(), logits[ids].tolist())


@given(
    values=st.lists(st.integers(-8, 8), min_size=1, max_size=40),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.1, 0.7, 3.0]),
    banned=st.integers(0, 5),
    temperature=st.sampled_from([0.0, 1e-3, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([1, 2, 5, 20, 256]),
    top_p=st.sampled_from([0.1, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
    draw=st.floats(0.0, 1.0, exclude_max=True),
)
def test_the_best_few_give_the_same_draw_as_the_whole_row(
    values: list[int],
    seed: int,
    spread: float,
    banned: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    draw: float,
) -> None:
    """Equal logits among them, ids that may not come, and fewer ids than top_k."""
    size = 300 if seed % 2 else len(values)
    logits = np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)
    logits[: len(values)] = np.array(values, dtype=np.float32) * np.float32(spread)
    logits[: min(banned, size - 1)] = -np.inf
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    count = num_candidates(params)
    assert count is not None
    assert sample_candidates(best(logits, count), params, draw) == sample(logits.copy(), params, draw)


def test_what_needs_the_whole_row() -> None:
    assert num_candidates(SamplingParams(temperature=1.0)) is None
    assert num_candidates(SamplingParams(temperature=1.0, top_k=257)) is None
    assert num_candidates(SamplingParams(temperature=1.0, top_k=256)) == 256
    assert num_candidates(SamplingParams(temperature=0.0, top_k=5)) == 1
    chain = logit_chain(
        SamplingParams(temperature=1.0, repetition_penalty=1.1), vocab_size=9, prompt_ids=[1], stop_ids=[], min_tokens=0
    )
    assert not chain.is_additive


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_candidates_that_are_not_finite_are_not_drawn(bad: float) -> None:
    candidates = Candidates([3, 1], [bad, bad])
    with pytest.raises(NotFinite):
        sample_candidates(candidates, SamplingParams(temperature=0.0), 0.5)
