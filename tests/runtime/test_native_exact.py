"""The native engine under any load: requests that come and go, prompts cut anywhere, slots and pages that others held, sequences
that were pre-empted, one or two threads, every instruction set. Every row of logits that the engine gives, and what each sequence
leaves behind, has the bits of one step that reads the same ids alone and whole; every id drawn is the one drawn alone.

bf16 products may be rounded in another order on another instruction set, so there the comparison stays on one.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from engine_driver import LETTERS, Answers, collect, run_one  # type: ignore[import-not-found]
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from shoal.kernels.cpu import available_isas
from shoal.kernels.cpu.engine import DELTA, EngineSizes
from shoal.kernels.cpu.engine import Engine as NativeEngine
from shoal.runtime.block_manager import BlockManager
from shoal.runtime.config import EngineOptions
from shoal.runtime.container import open_container
from shoal.runtime.engine import Engine, Runner
from shoal.runtime.loading import LoadedEngine, load_engine
from shoal.runtime.native_backend import NativeBackend, engine_shape, open_engine
from shoal.runtime.sampler import largest
from shoal.runtime.scheduler import Scheduler, SchedulerLimits, StepPlan
from shoal.runtime.step_result import Candidates, CandidatesWanted, StepResult
from shoal.runtime.synth import synthesise
from shoal.runtime.wire import FinishReason, IdsPrompt, Request, Sampling

Float32 = npt.NDArray[np.float32]

ROPE = {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.5, "mrope_interleaved": True}
COMMON = {"model_type": "qwen3_5_text", "linear_conv_kernel_dim": 4, "max_position_embeddings": 512, "vocab_size": 300}
SHAPES: dict[str, dict[str, Any]] = {
    # A column group beyond one block of 256, three value heads a key head, queries in threes.
    "wide": COMMON
    | {
        "hidden_size": 264,
        "intermediate_size": 300,
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 3,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 48,
        "rope_parameters": ROPE | {"mrope_section": [6, 5, 5]},
        "tie_word_embeddings": True,
    },
    "small": COMMON
    | {
        "hidden_size": 56,
        "intermediate_size": 72,
        "num_hidden_layers": 4,
        "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "rope_parameters": ROPE | {"mrope_section": [2, 1, 1]},
        "tie_word_embeddings": False,
    },
}
ISAS = tuple(available_isas())
FUSED_ISAS = {isa: ISAS[0] if isa == "scalar" else isa for isa in ISAS}
"""Those of bf16: without a fused multiply-add its products take a hundred times as long."""
FORMATS = ("bf16", "int8", "int4")
PARALLEL, LONGEST_PROMPT, LONGEST_ANSWER = 5, 150, 24
SAMPLINGS = (
    Sampling(temperature=0.0),
    Sampling(temperature=1.0, seed=3),
    Sampling(temperature=1.3, seed=4, top_k=20, logit_bias=LETTERS),
    Sampling(temperature=0.8, seed=9, presence_penalty=1.0, frequency_penalty=0.3, top_k=20),
    Sampling(temperature=0.9, seed=5, repetition_penalty=1.2, top_p=0.9, min_p=0.01),
)


def left_behind(engine: NativeEngine, num_tokens: int, slot: int, table: npt.NDArray[np.int32]) -> list[Float32]:
    """Everything that a sequence keeps, by layer."""
    kept: list[Float32] = []
    for i, kind in enumerate(engine.shape.layers):
        if kind == DELTA:
            kept += [engine.read_columns(i, slot), engine.read_state(i, slot, num_tokens)]
        else:
            kept += [engine.read_keys(i, table, num_tokens), engine.read_values(i, table, num_tokens)]
    return kept


def same_bits(got: Float32, want: Float32) -> bool:
    return got.shape == want.shape and np.array_equal(got.view(np.uint32), want.view(np.uint32))


@dataclass(frozen=True)
class Noted:
    """What one step gave one sequence, of which `ids` were computed then."""

    seq_id: int
    ids: list[int]
    scored: range
    scores: Float32
    last: Float32 | Candidates | None
    wish: CandidatesWanted | None
    kept: list[Float32] | None
    """Where somebody was told to look."""


@dataclass
class NotingRunner:
    """Passes every step on and notes what came of it; looks at states after every `look_every`-th row."""

    runner: Runner
    engine: NativeEngine
    blocks: BlockManager
    look_every: int
    noted: list[Noted] = field(default_factory=list)

    def execute(self, plan: StepPlan, wanted: Sequence[CandidatesWanted | None]) -> StepResult:
        result = self.runner.execute(plan, wanted)
        for row, wish, got in zip(plan.rows, wanted, result.rows, strict=True):
            sequence, kept = row.sequence, None
            if len(self.noted) % self.look_every == 0:
                table = np.array(self.blocks.table(sequence.seq_id), dtype=np.int32)
                kept = left_behind(self.engine, row.end, self.blocks.slot(sequence.seq_id), table)
            # Copies, for the owner of the arrays writes into them, and the runner uses them again.
            last = copy.deepcopy(got.last)
            scored = row.scored_range if row.scores else range(0)
            ids = sequence.token_ids[: row.end]
            self.noted.append(Noted(sequence.seq_id, ids, scored, got.scored.copy(), last, copy.deepcopy(wish), kept))
        return result


@dataclass(frozen=True)
class Alone:
    """An engine that reads ids from the first to the last in one step of one sequence, and keeps nothing between."""

    engine: NativeEngine
    num_drawable: int

    def read(self, ids: Sequence[int]) -> Float32:
        table = np.arange(self.engine.sizes.num_pages, dtype=np.int32)
        everywhere = np.arange(len(ids), dtype=np.int32)
        return self.engine.logits(list(ids), [len(ids), 0, 0, 0], table, everywhere)

    def check(self, noted: Sequence[Noted]) -> None:
        """Every row of logits of every sequence, and the states that were looked at."""
        longest: dict[int, list[int]] = {}
        for note in noted:
            if len(note.ids) > len(longest.get(note.seq_id, ())):
                longest[note.seq_id] = note.ids
        logits = {seq_id: self.read(ids) for seq_id, ids in longest.items()}
        for note in noted:
            whole = logits[note.seq_id]
            assert note.ids == longest[note.seq_id][: len(note.ids)]
            assert same_bits(note.scores, whole[note.scored.start : note.scored.stop]), note.scored
            self._check_last(note, whole[len(note.ids) - 1])
            if note.kept is not None:
                self.read(note.ids)
                table = np.arange(self.engine.sizes.num_pages, dtype=np.int32)
                want = left_behind(self.engine, len(note.ids), 0, table)
                for at, (got, expected) in enumerate(zip(note.kept, want, strict=True)):
                    assert same_bits(got, expected), (at // 2, len(note.ids))

    def _check_last(self, note: Noted, want: Float32) -> None:
        if isinstance(note.last, np.ndarray):
            assert same_bits(note.last, want), len(note.ids)
        elif note.last is not None:
            assert note.wish is not None
            adjusted = want.copy()
            if note.wish.ids is not None and note.wish.values is not None:
                adjusted[np.array(note.wish.ids)] += np.array(note.wish.values, dtype=np.float32)
            ids = largest(adjusted[: self.num_drawable], note.wish.count)
            assert note.last.ids == ids.tolist()
            assert same_bits(np.array(note.last.logits, dtype=np.float32), adjusted[ids])


class Models:
    """The checkpoints, and engines of them, each made once: so most examples meet slots and pages that others have used."""

    def __init__(self, folder: Path) -> None:
        self._home = folder / "home"
        self._folder = folder

    @functools.cache  # noqa: B019
    def directory(self, shape: str) -> Path:
        synthesise(SHAPES[shape], self._folder / shape, seed=7)
        return self._folder / shape

    @functools.cache  # noqa: B019
    def loaded(self, shape: str, format_: str, kv_format: str, isa: str, threads: int) -> LoadedEngine:
        options = EngineOptions(
            backend="cpu", format=format_, kv_format=kv_format, isa=isa, threads=threads, parallel=PARALLEL, context=256
        )
        return load_engine(self.directory(shape), options, home=self._home)

    @functools.cache  # noqa: B019
    def alone(self, shape: str, format_: str, kv_format: str, isa: str) -> Alone:
        loaded = self.loaded(shape, format_, kv_format, isa, 1)
        assert isinstance(loaded.backend, NativeBackend)
        sizes = EngineSizes(
            num_pages=4, num_slots=1, max_tokens=256, max_rows=1, max_full_rows=256, kv_format=kv_format, isa=isa
        )
        container = open_container(loaded.backend.weights.container.path.parent)
        drawable = loaded.backend.engine.sizes.drawable_vocab_size
        assert drawable is not None
        return Alone(open_engine(container, engine_shape(loaded.config), sizes), drawable)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("exact"))


@dataclass(frozen=True)
class Bounds:
    """Of one engine's scheduler and pools."""

    num_blocks: int
    num_slots: int
    budget: int
    beside_decode: int
    scored: int
    look_every: int


def engine_of(loaded: LoadedEngine, bounds: Bounds) -> tuple[Engine, NotingRunner]:
    blocks = BlockManager(
        num_blocks=bounds.num_blocks, num_slots=bounds.num_slots, block_tokens=loaded.plan.block_tokens
    )
    limits = SchedulerLimits(
        max_running=bounds.num_slots,
        max_batched_tokens=bounds.budget,
        max_prefill_beside_decode=bounds.beside_decode,
        max_waiting=100,
        max_scored_tokens=bounds.scored,
    )
    assert isinstance(loaded.backend, NativeBackend)
    runner = NotingRunner(loaded.backend.runner(blocks, lambda: 0.0), loaded.backend.engine, blocks, bounds.look_every)
    return Engine(loaded.engine.intake, Scheduler(limits, blocks), runner, clock=lambda: 0.0), runner


def request_of(name: str, seed: int, num_prompt: int, **fields: Any) -> Request:
    ids = np.random.default_rng(seed).integers(0, 256, num_prompt).tolist()
    return Request(request_id=name, prompt=IdsPrompt(token_ids=ids), ignore_eos=True, **fields)


REQUESTS = st.builds(
    functools.partial(request_of, ""),
    seed=st.integers(0, 3),
    num_prompt=st.one_of(st.integers(1, LONGEST_PROMPT), st.sampled_from([1, 15, 16, 17, 63, 64, 65, 128])),
    sampling=st.sampled_from(SAMPLINGS),
    max_tokens=st.integers(1, LONGEST_ANSWER),
    logprobs=st.sampled_from([None, None, 0, 2]),
    prompt_logprobs=st.sampled_from([None, None, None, 1]),
    n=st.sampled_from([1, 1, 1, 2]),
)
# What happens, in order: a request comes, some steps run, a request goes.
EVENTS = st.lists(st.one_of(REQUESTS, REQUESTS, st.integers(1, 12), st.integers(-6, -1)), min_size=2, max_size=9)
BOUNDS = st.integers(1, PARALLEL).flatmap(
    lambda slots: st.builds(
        Bounds,
        num_blocks=st.integers(3, 8),
        num_slots=st.just(slots),
        budget=st.one_of(st.integers(slots, 40), st.just(512)),
        beside_decode=st.sampled_from([1, 3, 16, 32]),
        scored=st.integers(1, 32),
        look_every=st.integers(5, 9),
    )
)


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=20, phases=[Phase.explicit, Phase.generate], print_blob=True)  # to shrink one takes minutes
@given(
    events=EVENTS,
    bounds=BOUNDS,
    shape=st.sampled_from(sorted(SHAPES)),
    kv_format=st.sampled_from(["bf16", "int8", "f32"]),
    isas=st.tuples(st.sampled_from(ISAS), st.sampled_from(ISAS)),
    threads=st.integers(1, 2),
)
def test_any_load_gives_the_bits_of_each_alone(
    models: Models,
    format_: str,
    events: list[Request | int],
    bounds: Bounds,
    shape: str,
    kv_format: str,
    isas: tuple[str, str],
    threads: int,
) -> None:
    isa, other_isa = isas if format_ != "bf16" else (FUSED_ISAS[isas[0]], FUSED_ISAS[isas[0]])
    loaded = models.loaded(shape, format_, kv_format, isa, threads)
    engine, runner = engine_of(loaded, bounds)
    answers: Answers = {}
    requests: list[Request] = []
    for event in events:
        if isinstance(event, Request):
            event = request_like(event, f"r{len(requests)}")
            requests.append(event)
            engine.add(event)
        elif event > 0:
            for _ in range(event):
                collect(answers, engine.step())
                engine.check_books()
        elif requests:
            collect(answers, engine.abort((requests[event % len(requests)].request_id, 0)))
    while engine.has_work:
        collect(answers, engine.step())
        engine.check_books()
    models.alone(shape, format_, kv_format, other_isa).check(runner.noted)
    alone = models.loaded(shape, format_, kv_format, other_isa, 1).engine
    for request in requests:
        want = run_alone(alone, request)
        for choice in range(request.n):
            got = answers[request.request_id, choice]
            ids, logprobs = want[request.request_id, choice].ids, want[request.request_id, choice].logprobs
            if got.reason is FinishReason.ABORT:
                ids, logprobs = ids[: len(got.ids)], logprobs[: len(got.logprobs)]
            assert (got.ids, got.logprobs) == (ids, logprobs)
            if got.prompt is not None:
                assert got.prompt == want[request.request_id, choice].prompt


def request_like(request: Request, name: str) -> Request:
    return msgspec.structs.replace(request, request_id=name)


def run_alone(engine: Engine, request: Request) -> Answers:
    answers: Answers = {}
    engine.add(request)
    while engine.has_work:
        collect(answers, engine.step())
    return answers


@pytest.mark.parametrize("format_", FORMATS)
def test_preempted_sequences_and_used_slots(models: Models, format_: str) -> None:
    """Five sequences that each grow into a second block, and five blocks in all; then others in what they left."""
    loaded = models.loaded("wide", format_, "bf16", "auto", 2)
    engine, runner = engine_of(loaded, Bounds(5, PARALLEL, 40, 16, 32, 3))
    requests = [request_of(f"r{i}", i, 50 + i, sampling=SAMPLINGS[i], max_tokens=LONGEST_ANSWER) for i in range(5)]
    requests += [request_of(f"s{i}", 9 + i, 5 + 30 * i, sampling=SAMPLINGS[0], max_tokens=5) for i in range(4)]
    answers: Answers = {}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        collect(answers, engine.step())
        engine.check_books()
    assert engine.stats.preemptions >= 1
    models.alone("wide", format_, "bf16", "auto").check(runner.noted)
    alone = models.loaded("wide", format_, "bf16", "auto", 1).engine
    for request in requests:
        assert answers[request.request_id, 0].ids == run_one(alone, request).ids
