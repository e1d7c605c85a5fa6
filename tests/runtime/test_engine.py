"""The engine on a tiny random checkpoint: what is in the batch, how prompts are cut and who is pre-empted change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from engine_driver import LETTERS, Answers, ask, collect, run, run_one  # type: ignore[import-not-found]

from shoal.runtime.config import EngineOptions, load_model_config
from shoal.runtime.engine import Engine
from shoal.runtime.errors import ContextTooLong, RequestInvalid
from shoal.runtime.loading import LoadedEngine, load_engine
from shoal.runtime.plan import plan_memory
from shoal.runtime.refusals import DuplicateRequest, FieldInvalid, QueueFull
from shoal.runtime.text_errors import TokenIdInvalid
from shoal.runtime.wire import (
    Conversation,
    FinishReason,
    IdsPrompt,
    Request,
    Sampling,
)

OPTIONS = EngineOptions(parallel=4, context=128, block_tokens=4, max_batched_tokens=64, threads=1)


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> LoadedEngine:
    return load_engine(tiny_checkpoint, OPTIONS)


@pytest.fixture
def engine(loaded: LoadedEngine) -> Engine:
    return loaded.engine


MIX = [
    ask("a", "short"),
    ask("The quick brown fox jumps over the lazy dog. " * 2, "long"),
    ask("x" * 63, "63", seed=1),
    ask("y" * 64, "64", seed=2, max_tokens=33),
    ask("zebra", "seeded", seed=3, max_tokens=40),
    ask("zebra", "seeded2", seed=4, max_tokens=7),
    ask("b", "one", max_tokens=1),
    ask("hello there", "penalised", sampling=Sampling(temperature=0.8, seed=9, presence_penalty=1.0, top_k=20)),
]


@pytest.fixture(scope="module")
def alone(loaded: LoadedEngine) -> dict[str, list[int]]:
    return {request.request_id: run_one(loaded.engine, request).ids for request in MIX}


def test_a_batch_gives_each_what_it_gets_alone(engine: Engine, alone: dict[str, list[int]]) -> None:
    answers = run(engine, *MIX)
    assert {name: one.ids for (name, _), one in answers.items()} == alone
    for request in MIX:
        assert len(alone[request.request_id]) == request.max_tokens
        one = answers[request.request_id, 0]
        assert one.reason is FinishReason.LENGTH
        assert one.prompt is not None
        assert one.finish is not None
        assert one.finish.usage.prompt_tokens == len(one.prompt.token_ids)
        assert one.finish.usage.completion_tokens == request.max_tokens
    assert len({tuple(ids[:7]) for ids in alone.values()}) > 4  # the answers do differ


@pytest.mark.parametrize("budget", [4, 5, 16, 63, 512])
def test_how_a_prompt_is_cut_changes_nothing(tiny_checkpoint: Path, alone: dict[str, list[int]], budget: int) -> None:
    engine = load_engine(tiny_checkpoint, replace(OPTIONS, max_batched_tokens=budget)).engine
    answers = run(engine, *MIX)
    assert {name: one.ids for (name, _), one in answers.items()} == alone
    assert all(one.prefilled == sorted(set(one.prefilled)) for one in answers.values())


def test_preemption_leaves_every_answer_as_it_was(tiny_checkpoint: Path, alone: dict[str, list[int]]) -> None:
    plan = plan_memory(load_model_config(tiny_checkpoint), OPTIONS)
    options = replace(OPTIONS, memory=plan.total_bytes - plan.kv * 2 // 3)
    engine = load_engine(tiny_checkpoint, options).engine
    answers = run(engine, *MIX)
    stats = engine.stats
    assert stats.preemptions >= 2
    assert {name: one.ids for (name, _), one in answers.items()} == alone
    assert stats.generation_tokens == sum(len(ids) for ids in alone.values())
    assert stats.prompt_tokens == sum(len(one.prompt.token_ids) for one in answers.values() if one.prompt)


def test_an_abort_frees_everything_before_the_next_step(engine: Engine) -> None:
    for name in ("keep", "drop", "wait1", "wait2", "wait3"):
        engine.add(ask("some words to read", name, max_tokens=30))
    answers: Answers = {}
    for _ in range(5):
        collect(answers, engine.step())
    before = engine.stats
    assert (before.running, before.waiting) == (4, 1)
    collect(answers, engine.abort(("drop", 0)))
    collect(answers, engine.abort(("wait3", 0)))
    after = engine.stats
    assert (after.running, after.waiting) == (3, 0)
    assert after.state_slots_used == before.state_slots_used - 1
    assert after.kv_blocks_used < before.kv_blocks_used
    dropped = answers["drop", 0]
    assert dropped.reason is FinishReason.ABORT
    assert dropped.finish is not None
    assert dropped.finish.usage.completion_tokens == len(dropped.ids) == 5
    assert answers["wait3", 0].ids == []
    assert engine.abort(("drop", 0)) == engine.abort(("never", 0)) == []
    while engine.has_work:
        collect(answers, engine.step())
    assert answers["keep", 0].ids == run_one(engine, ask("some words to read", max_tokens=30)).ids


def test_a_reused_slot_starts_from_nothing(engine: Engine) -> None:
    first = run_one(engine, ask("first", max_tokens=12)).ids
    run_one(engine, ask("something else entirely", max_tokens=30))
    assert run_one(engine, ask("first", max_tokens=12)).ids == first


# --- choices and seeds -----------------------------------------------------------------------------------------------


def test_choice_0_is_what_one_choice_gives_and_the_others_differ(engine: Engine) -> None:
    single = run_one(engine, ask("roll", "single", seed=8))
    answers = run(engine, ask("roll", "many", seed=8, n=6))
    assert len(answers) == 6
    assert answers["many", 0].ids == single.ids
    assert len({tuple(one.ids) for one in answers.values()}) == 6
    assert [one.prompt is not None for _, one in sorted(answers.items())] == [True] + [False] * 5
    again = run(engine, ask("roll", "again", seed=8, n=3))
    assert [again["again", i].ids for i in range(3)] == [answers["many", i].ids for i in range(3)]


def test_without_a_seed_each_request_has_its_own(engine: Engine) -> None:
    sampling = Sampling(temperature=1.0, logit_bias=LETTERS)
    answers = run(engine, *[ask("roll", name, sampling=sampling) for name in ("a", "b", "c")])
    assert len({tuple(one.ids) for one in answers.values()}) == 3


def test_an_abort_ends_all_choices(engine: Engine) -> None:
    engine.add(ask("roll", "many", seed=8, n=6))
    engine.step()
    outputs = engine.abort(("many", 0))
    assert [output.choice for output in outputs] == [0, 1, 2, 3, 4, 5]
    assert not engine.has_work


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "error", "param"),
    [
        (ask("x" * 128), ContextTooLong, "prompt"),
        (ask("x" * 129, max_tokens=None), ContextTooLong, "prompt"),
        (ask("x" * 100, max_tokens=29), ContextTooLong, "max_tokens"),
        (ask(""), FieldInvalid, "prompt"),
        (ask("x", max_tokens=0), FieldInvalid, "max_tokens"),
        (ask("x", max_tokens=-1), FieldInvalid, "max_tokens"),
        (ask("x", max_tokens=3, min_tokens=4), FieldInvalid, "min_tokens"),
        (ask("x", min_tokens=-1), FieldInvalid, "min_tokens"),
        (ask("x", n=0), FieldInvalid, "n"),
        (ask("x", n=65), FieldInvalid, "n"),
        (ask("x", logprobs=21), FieldInvalid, "logprobs"),
        (ask("x", prompt_logprobs=-1), FieldInvalid, "prompt_logprobs"),
        (ask("x", stop=[""]), FieldInvalid, "stop[0]"),
        (ask("x", stop=["a"] * 65), FieldInvalid, "stop"),
        (ask("x", stop_token_ids=[-1]), FieldInvalid, "stop_token_ids"),
        (ask("x", stop_token_ids=[300]), FieldInvalid, "stop_token_ids"),
        (ask("x", sampling=Sampling(temperature=-1.0)), FieldInvalid, "temperature"),
        (Request(request_id="r", prompt=IdsPrompt(token_ids=[1, 300])), TokenIdInvalid, "prompt[1]"),
        (Request(request_id="r", prompt=Conversation(messages=b'[{"role": "user", "content": "%s"}]' % (b"x" * 200))),
         ContextTooLong, "messages"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_by_field(
    engine: Engine, request_: Request, error: type[RequestInvalid], param: str
) -> None:
    with pytest.raises(error) as refused:
        engine.add(request_)
    assert refused.value.param == param
    assert not engine.has_work


def test_the_context_is_used_to_its_last_token(engine: Engine) -> None:
    one = run_one(engine, ask("x" * 100, max_tokens=None))
    assert len(one.ids) == 28
    assert run_one(engine, ask("x" * 127, max_tokens=1)).reason is FinishReason.LENGTH
    assert run_one(engine, ask("x" * 128, max_tokens=0, echo=True)).reason is FinishReason.LENGTH


def test_the_queue_is_bounded_and_takes_all_choices_or_none(engine: Engine) -> None:
    for index in range(4):
        engine.add(ask("x", f"many{index}", n=64))
    with pytest.raises(QueueFull):
        engine.add(ask("x", "more", n=2))
    with pytest.raises(DuplicateRequest):
        engine.add(ask("x", "many0"))
    assert engine.stats.waiting == 256
    for index in range(4):
        assert len(engine.abort((f"many{index}", 0))) == 64
    assert not engine.has_work


# --- time ------------------------------------------------------------------------------------------------------------


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clocked(tiny_checkpoint: Path) -> tuple[Engine, Clock]:
    clock = Clock()
    return load_engine(tiny_checkpoint, replace(OPTIONS, parallel=1), clock=clock).engine, clock


def test_a_deadline_ends_what_runs_and_what_waits(clocked: tuple[Engine, Clock]) -> None:
    engine, clock = clocked
    engine.add(ask("runs", "runs", deadline_ms=2000))
    engine.add(ask("waits", "waits", deadline_ms=1000, n=2))
    answers: Answers = {}
    collect(answers, engine.step())
    clock.now += 1.0
    collect(answers, engine.step())
    assert answers["waits", 0].reason is answers["waits", 1].reason is FinishReason.DEADLINE
    assert len(answers["runs", 0].ids) == 2
    clock.now += 1.0
    collect(answers, engine.step())
    assert answers["runs", 0].reason is FinishReason.DEADLINE
    assert answers["runs", 0].finish is not None
    assert answers["runs", 0].finish.usage.completion_tokens == 2
    assert not engine.has_work


def test_timings_say_where_the_time_went(clocked: tuple[Engine, Clock]) -> None:
    engine, clock = clocked
    prepared = engine.intake.prepare(ask("x" * 70, max_tokens=3), clock.now)
    clock.now += 0.5  # waits
    engine.add(prepared)
    engine.step()  # 64 of 70 tokens
    clock.now += 2.0
    outputs = engine.step()
    assert outputs[0].token_ids
    clock.now += 0.25
    engine.step()
    clock.now += 0.25
    (output,) = engine.step()
    assert output.finish is not None
    timings = output.finish.timings
    assert (timings.queue_s, timings.prefill_s, timings.ttft_s) == (0.5, 2.0, 2.5)
    assert (timings.decode_s, timings.total_s) == (0.5, 3.0)
    histogram = engine.stats.inter_token_s
    assert (sum(histogram.counts), histogram.total) == (2, 0.5)
