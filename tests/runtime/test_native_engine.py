"""The engine on the native back end: what is in the batch, how prompts are cut, who is pre-empted, how many threads compute and
whether whole rows or candidates are drawn from change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from engine_driver import LETTERS, Answers, ask, run, run_one  # type: ignore[import-not-found]

from shoal.kernels.cpu import available_isas
from shoal.runtime.block_manager import BlockManager
from shoal.runtime.config import EngineOptions
from shoal.runtime.engine import Engine
from shoal.runtime.loading import LoadedEngine, load_engine
from shoal.runtime.scheduler import Scheduler, SchedulerLimits, StepPlan
from shoal.runtime.step_result import Candidates, CandidatesWanted, StepResult
from shoal.runtime.wire import Request, Sampling

OPTIONS = EngineOptions(backend="cpu", parallel=4, context=256, max_batched_tokens=64, threads=1)
PENALISED = Sampling(temperature=0.8, seed=9, presence_penalty=1.0, frequency_penalty=0.3, top_k=20)
FILTERED = Sampling(temperature=1.2, seed=5, top_k=40, top_p=0.9, min_p=0.01, logit_bias=LETTERS)
REPEATING = Sampling(temperature=0.9, seed=4, repetition_penalty=1.2, top_k=7)

MIX = [
    ask("a", "short"),
    ask("The quick brown fox jumps over the lazy dog. " * 3, "long"),
    ask("x" * 63, "63", seed=1),
    ask("y" * 64, "64", seed=2, max_tokens=33),
    ask("zebra", "seeded", seed=3, max_tokens=40),
    ask("b", "one", max_tokens=1),
    ask("hello there", "penalised", sampling=PENALISED, max_tokens=70),
    ask("hello there", "filtered", sampling=FILTERED, max_tokens=30),
    ask("hello there", "repeating", sampling=REPEATING),
    ask("logprobs of it", "scored", logprobs=3, prompt_logprobs=1, echo=True),
    ask("min", "min", ignore_eos=False, min_tokens=15, stop_token_ids=list(range(97, 123)), sampling=PENALISED),
]


def load(directory: Path, home: Path, **changes: object) -> LoadedEngine:
    return load_engine(directory, replace(OPTIONS, **changes), home=home)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["bf16", "int8", "int4"])
def format_(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def loaded(native_checkpoint: Path, native_home: Path, format_: str) -> LoadedEngine:
    return load(native_checkpoint, native_home, format=format_)


def ids_of(answers: Answers) -> dict[str, list[int]]:
    return {name: one.ids for (name, _), one in answers.items()}


@pytest.fixture(scope="module")
def alone(loaded: LoadedEngine) -> dict[str, list[int]]:
    return {request.request_id: run_one(loaded.engine, request).ids for request in MIX}


def test_a_batch_gives_each_what_it_gets_alone(loaded: LoadedEngine, alone: dict[str, list[int]]) -> None:
    assert loaded.plan.backend == "cpu"
    assert ids_of(run(loaded.engine, *MIX)) == alone
    assert len({tuple(ids[:7]) for ids in alone.values()}) > 4  # the answers do differ


@pytest.mark.parametrize("budget", [4, 17, 63, 512])
def test_how_a_prompt_is_cut_changes_nothing(
    native_checkpoint: Path, native_home: Path, format_: str, alone: dict[str, list[int]], budget: int
) -> None:
    engine = load(native_checkpoint, native_home, format=format_, max_batched_tokens=budget).engine
    assert ids_of(run(engine, *MIX)) == alone


def test_two_threads_give_the_same(
    native_checkpoint: Path, native_home: Path, format_: str, alone: dict[str, list[int]]
) -> None:
    engine = load(native_checkpoint, native_home, format=format_, threads=2).engine
    assert ids_of(run(engine, *MIX)) == alone


@pytest.mark.parametrize("isa", available_isas())
def test_every_instruction_set_gives_the_same_integers(
    native_checkpoint: Path, native_home: Path, format_: str, alone: dict[str, list[int]], isa: str
) -> None:
    engine = load(native_checkpoint, native_home, format=format_, isa=isa)
    assert engine.backend.isa == isa
    answers = ids_of(run(engine.engine, *MIX))
    if format_ != "bf16":  # products of bf16 may round differently from one instruction set to the other
        assert answers == alone


def test_preemption_leaves_every_answer_as_it_was(
    native_checkpoint: Path, native_home: Path, loaded: LoadedEngine, format_: str
) -> None:
    """Three sequences that grow into a second block each, and five blocks."""
    growing = [ask("grow " * 8, f"g{seed}", seed=seed, max_tokens=60) for seed in range(4)]
    block = loaded.plan.kv // loaded.plan.num_blocks
    memory = loaded.plan.total_bytes - loaded.plan.kv + 5 * block
    engine = load(native_checkpoint, native_home, format=format_, memory=memory).engine
    answers = ids_of(run(engine, *growing))
    assert engine.stats.preemptions >= 1
    assert answers == {request.request_id: run_one(loaded.engine, request).ids for request in growing}


class WholeRows:
    """A runner that is never asked for candidates."""

    def __init__(self, runner: object) -> None:
        self._runner = runner

    def execute(self, plan: StepPlan, wanted: Sequence[CandidatesWanted | None]) -> StepResult:
        result: StepResult = self._runner.execute(plan, [None] * len(wanted))  # type: ignore[attr-defined]
        assert not any(isinstance(row.last, Candidates) for row in result.rows)
        return result


def test_candidates_draw_what_whole_rows_draw(loaded: LoadedEngine, alone: dict[str, list[int]]) -> None:
    plan = loaded.plan
    blocks = BlockManager(num_blocks=plan.num_blocks, num_slots=plan.num_slots, block_tokens=plan.block_tokens)
    limits = SchedulerLimits(
        max_running=4, max_batched_tokens=64, max_prefill_beside_decode=32, max_waiting=99, max_scored_tokens=9
    )
    runner = WholeRows(loaded.backend.runner(blocks, lambda: 0.0))
    engine = Engine(loaded.engine.intake, Scheduler(limits, blocks), runner)
    assert ids_of(run(engine, *MIX)) == alone


def test_a_request_with_many_choices(loaded: LoadedEngine) -> None:
    request = ask("roll", "many", seed=8, n=6)
    first = ids_of_choices(loaded, request)
    assert ids_of_choices(loaded, request) == first
    assert len(set(map(tuple, first))) == 6


def ids_of_choices(loaded: LoadedEngine, request: Request) -> list[list[int]]:
    answers = run(loaded.engine, request)
    return [answers[request.request_id, choice].ids for choice in range(request.n)]


def test_int8_keys_and_values(native_checkpoint: Path, native_home: Path, format_: str) -> None:
    loaded = load(native_checkpoint, native_home, format=format_, kv_format="int8")
    assert loaded.plan.kv_format == "int8"
    once = ids_of(run(loaded.engine, *MIX))
    assert once == {request.request_id: run_one(loaded.engine, request).ids for request in MIX}


def test_planned_is_allocated_to_the_byte(loaded: LoadedEngine) -> None:
    planned = {name: size for name, size in loaded.plan.by_pool().items() if name not in ("host", "conv")}
    assert loaded.backend.allocated_bytes == planned
