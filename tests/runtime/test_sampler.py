"""The draw against independent arithmetic: Philox's published vectors, a plain numpy filter, chi-square on softmax."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.runtime.generation_defaults import GenerationDefaults
from shoal.runtime.logit_processors import Adjustments, Penalties, VocabMask, logit_chain
from shoal.runtime.logprobs import first_logprob, log_softmax, token_logprob
from shoal.runtime.philox import philox_4x32, uniform
from shoal.runtime.refusals import FieldInvalid
from shoal.runtime.sampler import NotFinite, greedy, largest, sample
from shoal.runtime.sampling_params import SamplingParams, resolve_sampling
from shoal.runtime.wire import Sampling

Row = npt.NDArray[np.float32]


def row(values: list[float]) -> Row:
    return np.array(values, dtype=np.float32)


# --- Philox ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # The known-answer vectors of the Random123 distribution for philox4x32-10.
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_vectors(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    assert philox_4x32(counter, key) == expected


def test_draws_are_uniform_and_distinct() -> None:
    """Uniform in mean, variance and over 64 cells; one seed's draws do not repeat another's."""
    draws = np.array([uniform(7, 0, index) for index in range(20_000)])
    assert abs(draws.mean() - 0.5) < 4 * math.sqrt(1 / 12 / len(draws))
    assert abs(draws.var() - 1 / 12) < 0.002
    cells = np.bincount((draws * 64).astype(int), minlength=64)
    assert chi_square(cells, np.full(64, 1 / 64)) < chi_square_limit(63)
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    other = {uniform(seed, choice, index) for seed in (7, 8) for choice in (0, 1) for index in range(500)}
    assert len(other) == 2000


def test_seeds_count_modulo_64_bits_and_use_all_of_them() -> None:
    assert uniform(-1, 0, 3) == uniform(2**64 - 1, 0, 3)
    assert uniform(1, 0, 3) != uniform(1 + 2**32, 0, 3)
    assert uniform(1, 0, 3) != uniform(1, 0, 3 + 2**32)


# --- filters and draw ------------------------------------------------------------------------------------------------


def reference_distribution(logits: Row, params: SamplingParams) -> npt.NDArray[np.float64]:
    """The filters as their definitions say them, over the whole vocabulary, in f64: [V]."""
    scaled = logits.astype(np.float64) / params.temperature
    weights = np.exp(scaled - scaled.max())
    order = sorted(range(len(logits)), key=lambda index: (-logits[index], index))
    keep = [index for index in order if np.isfinite(logits[index]) and weights[index] >= params.min_p * weights.max()]
    keep = keep[: params.top_k] if params.top_k else keep
    mass = sum(weights[index] for index in keep)
    kept, reached = [], 0.0
    for index in keep:
        kept.append(index)
        reached += weights[index] / mass
        if reached >= params.top_p:
            break
    probabilities = np.zeros(len(logits))
    probabilities[kept] = weights[kept] / weights[kept].sum()
    return probabilities


def chi_square(counts: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> float:
    expected = probabilities * counts.sum()
    seen = expected > 0
    assert not counts[~seen].any()
    return float(((counts[seen] - expected[seen]) ** 2 / expected[seen]).sum())


def chi_square_limit(degrees: int) -> float:
    """The 99.9 % point (Wilson and Hilferty's approximation)."""
    return degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


PARAMS = {
    "plain": SamplingParams(temperature=1.0),
    "hot": SamplingParams(temperature=1.7),
    "cold": SamplingParams(temperature=0.4),
    "top_k": SamplingParams(temperature=1.0, top_k=7),
    "top_p": SamplingParams(temperature=1.0, top_p=0.8),
    "min_p": SamplingParams(temperature=1.3, min_p=0.1),
    "all": SamplingParams(temperature=0.9, top_k=12, top_p=0.9, min_p=0.02),
}


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("size", [30, 400])
def test_draws_follow_the_softmax_of_what_the_filters_keep(name: str, size: int) -> None:
    params = PARAMS[name]
    logits = np.random.default_rng(11).normal(0, 2, size).astype(np.float32)
    expected = reference_distribution(logits, params)
    num_draws = 6000
    counts = Counter(sample(logits, params, uniform(5, 0, index)) for index in range(num_draws))
    rare = expected * num_draws < 5  # cells that chi-square does not bear are put together
    seen = np.array([counts[index] for index in range(size)])
    pooled = np.append(seen[~rare], seen[rare].sum())
    assert not seen[expected == 0].any()
    degrees = int((~rare).sum()) - 1 + bool(expected[rare].sum())
    probabilities = np.append(expected[~rare], expected[rare].sum())
    assert chi_square(pooled, probabilities) < chi_square_limit(max(degrees, 1))


@given(
    values=st.lists(st.integers(-6, 6), min_size=1, max_size=300),
    top_k=st.integers(0, 80),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.03, 0.4, 1.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5),
)
def test_every_draw_is_where_the_reference_puts_it(
    values: list[int], top_k: int, top_p: float, min_p: float, temperature: float, draws: list[float]
) -> None:
    """Many equal logits: the order among equals is part of the contract."""
    logits = row([value * 0.7 for value in values])
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = reference_distribution(logits, params)
    order = sorted(range(len(logits)), key=lambda index: (-logits[index], index))
    cumulative = np.cumsum(expected[order])
    for draw in [*draws, 0.0, 1 - 2**-53]:
        place = order.index(sample(logits.copy(), params, draw))
        # Within rounding of the borders of its interval.
        assert (cumulative[place - 1] if place else 0.0) <= draw + 1e-9
        assert draw <= cumulative[place] + 1e-9
        assert expected[order[place]] > 0


def test_a_large_vocabulary_gives_the_draw_of_a_full_sort() -> None:
    logits = np.random.default_rng(3).normal(0, 1, 50_000).astype(np.float32)
    for params in (SamplingParams(temperature=1.0), SamplingParams(temperature=1.5, top_p=0.99)):
        expected = reference_distribution(logits, params)
        order = np.lexsort((np.arange(len(logits)), -logits))
        cumulative = np.cumsum(expected[order])
        for index in range(20):
            draw = uniform(1, 0, index)
            assert sample(logits, params, draw) == order[int(np.searchsorted(cumulative, draw, side="right"))]


def test_greedy_takes_the_lowest_of_equals() -> None:
    logits = row([1, 5, 5, -2])
    assert greedy(logits) == 1
    assert sample(logits, SamplingParams(temperature=0.0), 0.9) == 1


def test_largest_orders_equals_by_id() -> None:
    assert largest(row([2, 7, 2, 7, 1, 2]), 4).tolist() == [1, 3, 0, 2]
    assert largest(row([2, 7]), 9).tolist() == [1, 0]
    assert largest(row([2, 7]), 0).tolist() == []


@pytest.mark.parametrize("size", [255, 256, 2000, 20_000])
@pytest.mark.parametrize("count", [1, 3, 20, 200])
def test_the_largest_of_many_are_those_of_a_full_sort(size: int, count: int) -> None:
    draw = np.random.default_rng(size + count)
    for logits in (draw.normal(0, 3, size), draw.integers(-3, 3, size), np.zeros(size), np.full(size, -np.inf)):
        values = logits.astype(np.float32)
        values[size // 2] = 2.5
        order = np.lexsort((np.arange(size), -values))
        assert largest(values, count).tolist() == order[:count].tolist()


def test_a_tiny_temperature_is_greedy_and_not_nan() -> None:
    logits = row([0, 30, 29.99])
    assert sample(logits, SamplingParams(temperature=1e-30), 0.999) == 1


def test_one_allowed_id_is_drawn_whatever_the_chance() -> None:
    logits = row([-math.inf, 3, -math.inf])
    for draw in (0.0, 0.5, 1 - 2**-53):
        assert sample(logits, SamplingParams(temperature=1.0), draw) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_not_finite_is_said_and_not_drawn(bad: float, temperature: float) -> None:
    with pytest.raises(NotFinite):
        sample(row([0, bad, 1]), SamplingParams(temperature=temperature), 0.5)


# --- processors ------------------------------------------------------------------------------------------------------


@given(
    prompt=st.lists(st.integers(0, 19), max_size=30),
    generated=st.lists(st.integers(0, 19), max_size=150),
    presence=st.sampled_from([-1.0, 0.0, 1.5]),
    frequency=st.sampled_from([-0.5, 0.0, 0.7]),
    repetition=st.sampled_from([0.8, 1.0, 1.3]),
    cut=st.integers(0, 150),
)
def test_penalties_are_their_formulas(
    prompt: list[int], generated: list[int], presence: float, frequency: float, repetition: float, cut: int
) -> None:
    logits = np.random.default_rng(2).normal(0, 3, 20).astype(np.float32)
    expected = logits.astype(np.float64)
    for token_id in range(20):
        count = generated.count(token_id)
        if count or token_id in prompt:
            value = expected[token_id]
            expected[token_id] = value / repetition if value > 0 else value * repetition
        expected[token_id] -= frequency * count + presence * (count > 0)
    params = SamplingParams(
        temperature=1.0, presence_penalty=presence, frequency_penalty=frequency, repetition_penalty=repetition
    )
    penalties = Penalties(params, prompt)
    penalties.apply(logits.copy(), generated[:cut])  # an earlier step: what it read is not read twice
    penalties.apply(logits, generated)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_many_distinct_ids_are_all_remembered() -> None:
    params = SamplingParams(temperature=1.0, frequency_penalty=1.0, repetition_penalty=2.0)
    penalties = Penalties(params, range(100))
    logits = np.full(500, 4.0, dtype=np.float32)
    penalties.apply(logits, list(range(50, 450)))
    assert logits[:50].tolist() == [2.0] * 50
    assert logits[50:450].tolist() == [1.0] * 400
    assert logits[450:].tolist() == [4.0] * 50


def test_masks_and_biases() -> None:
    logits = row([1, 1, 1, 1, 1])
    VocabMask(4).apply(logits, [])
    assert logits.tolist() == [1, 1, 1, 1, -math.inf]
    params = SamplingParams(temperature=1.0, logit_bias={0: -2.5, 3: 4.0})
    adjustments = Adjustments(params, stop_ids=[3, 2], min_tokens=2)
    adjustments.apply(logits, [0])
    assert logits.tolist() == [-1.5, 1, -math.inf, -math.inf, -math.inf]
    logits = row([1, 1, 1, 1, 1])
    adjustments.apply(logits, [0, 0])
    assert logits.tolist() == [-1.5, 1, 1, 5, 1]


@given(
    generated=st.lists(st.integers(0, 19), max_size=150),
    presence=st.sampled_from([-1.0, 0.0, 1.5]),
    frequency=st.sampled_from([-0.5, 0.0, 0.7]),
    bias=st.dictionaries(st.integers(0, 19), st.sampled_from([-100.0, -0.3, 2.0]), max_size=4),
    cut=st.integers(0, 150),
)
def test_adjustments_are_their_formula_whenever_they_were_read(
    generated: list[int], presence: float, frequency: float, bias: dict[int, float], cut: int
) -> None:
    params = SamplingParams(temperature=1.0, presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias)
    adjustments = Adjustments(params)
    adjustments.read(generated[:cut])
    ids, values = adjustments.read(generated)
    assert len(set(ids.tolist())) == len(ids)
    found = dict(zip(ids.tolist(), values.tolist(), strict=True))
    for token_id in range(20):
        count = generated.count(token_id)
        expected = bias.get(token_id, 0.0) - frequency * count - presence * (count > 0)
        assert found.get(token_id, 0.0) == pytest.approx(expected, abs=1e-5)
    fresh = dict(zip(*(array.tolist() for array in Adjustments(params).read(generated)), strict=True))
    assert fresh == found


def test_a_request_gets_only_the_processors_it_needs() -> None:
    def names(params: SamplingParams, min_tokens: int = 0) -> list[str]:
        chain = logit_chain(params, vocab_size=9, prompt_ids=[1], stop_ids=[2], min_tokens=min_tokens)
        return [type(one).__name__ for one in chain.processors]

    assert names(SamplingParams(temperature=1.0)) == ["VocabMask"]
    everything = SamplingParams(temperature=1.0, logit_bias={1: 1.0}, presence_penalty=1.0)
    assert names(everything, 3) == ["VocabMask", "Adjustments"]
    repeating = SamplingParams(temperature=1.0, repetition_penalty=1.1)
    assert names(repeating) == ["VocabMask", "Penalties"]


# --- parameters ------------------------------------------------------------------------------------------------------

DEFAULTS = GenerationDefaults(temperature=0.6, top_p=0.95, top_k=20, presence_penalty=1.5)


def resolve(sampling: Sampling) -> SamplingParams:
    return resolve_sampling(sampling, DEFAULTS, vocab_size=100, draw_seed=lambda: 77)


def test_what_is_not_asked_for_is_the_checkpoints() -> None:
    assert resolve(Sampling()) == SamplingParams(temperature=0.6, top_p=0.95, top_k=20, presence_penalty=1.5, seed=77)


def test_what_is_asked_for_counts() -> None:
    params = resolve(Sampling(temperature=0.0, top_p=1.0, top_k=-1, presence_penalty=0.0, seed=0, logit_bias={3: 5.0}))
    assert params.is_greedy
    assert not params.has_penalties
    assert (params.top_k, params.seed, params.logit_bias) == (0, 0, {3: 5.0})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0.0),
        ("logit_bias", {100: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", dict.fromkeys(range(1025), 0.0)),
    ],
)
def test_what_is_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(FieldInvalid) as refused:
        resolve(Sampling(**{field: value}))  # type: ignore[arg-type]
    assert refused.value.param == field
    assert refused.value.code == "invalid_request"


# --- logprobs --------------------------------------------------------------------------------------------------------


def test_logprobs_are_the_f32_log_softmax_with_its_largest() -> None:
    logits = np.random.default_rng(5).normal(0, 4, (3, 1000)).astype(np.float32)
    exact = logits.astype(np.float64)
    exact = exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))
    scores = log_softmax(logits)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, exact, atol=1e-5)
    entry = token_logprob(scores[1], 17, 5, lambda token_id: b"t%d" % token_id)
    assert (entry.token_id, entry.token) == (17, b"t17")
    assert entry.logprob == pytest.approx(exact[1, 17], abs=1e-5)
    assert [top.token_id for top in entry.top] == np.argsort(-exact[1])[:5].tolist()
    assert all(top.token == b"t%d" % top.token_id for top in entry.top)


def test_no_alternatives_where_none_are_asked_for_and_nothing_before_the_first() -> None:
    scores = log_softmax(row([0, 1]))
    assert token_logprob(scores, 0, 0, lambda _: b"").top == []
    assert first_logprob(3, lambda _: b"x").logprob is None
