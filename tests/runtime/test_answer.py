"""Where an answer ends, what its logprobs are, and what a failing row does: on a tiny checkpoint and on scripted logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_driver import ask, drain, run, run_one, scripted  # type: ignore[import-not-found]

from shoal.runtime.batch import Batch, Row
from shoal.runtime.cache import HybridCache
from shoal.runtime.config import EngineOptions, load_model_config
from shoal.runtime.engine import Engine
from shoal.runtime.loading import LoadedEngine, load_engine
from shoal.runtime.plan import plan_memory
from shoal.runtime.wire import Conversation, DeltaKind, ErrorInfo, FinishReason, Request, Sampling, TokenLogprob

OPTIONS = EngineOptions(parallel=4, context=128, block_tokens=4, max_batched_tokens=64, threads=1)


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> LoadedEngine:
    return load_engine(tiny_checkpoint, OPTIONS)


@pytest.fixture
def engine(loaded: LoadedEngine) -> Engine:
    return loaded.engine


# --- logprobs --------------------------------------------------------------------------------------------------------


def reference_logprobs(loaded: LoadedEngine, ids: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """[T, V]: the whole sequence in one forward pass of the model, outside the engine."""
    plan = loaded.plan
    cache = HybridCache.allocate(loaded.backend.model.config, plan)
    blocks = tuple(range(-(-len(ids) // plan.block_tokens)))
    logits = loaded.backend.model.forward(Batch(ids, [Row(len(ids), 0, blocks, 0)], list(range(len(ids)))), cache)
    return torch.log_softmax(logits.double(), dim=-1).numpy()


def test_logprobs_of_prompt_and_answer_are_the_models_own(loaded: LoadedEngine) -> None:
    prompt = "What a long prompt it is, longer than one step may score: " * 2
    # Penalties, bias and temperature change the draw, not the logprobs.
    sampling = Sampling(temperature=0.7, seed=3, presence_penalty=1.5, logit_bias={5: 20.0})
    one = run_one(
        loaded.engine,
        ask(prompt, max_tokens=9, sampling=sampling, logprobs=4, prompt_logprobs=2, echo=True),
    )
    assert one.prompt is not None
    prompt_ids = one.prompt.token_ids
    assert prompt_ids == list(prompt.encode())
    assert one.prompt.text == prompt
    exact = reference_logprobs(loaded, prompt_ids + one.ids)
    assert [entry.token_id for entry in one.prompt.logprobs] == prompt_ids
    assert one.prompt.logprobs[0].logprob is None
    for position, entry in enumerate(one.prompt.logprobs[1:]):
        check_entry(entry, exact[position], num_top=2)
    assert [entry.token_id for entry in one.logprobs] == one.ids
    for index, entry in enumerate(one.logprobs):
        check_entry(entry, exact[len(prompt_ids) - 1 + index], num_top=4)


def check_entry(entry: TokenLogprob, exact: np.ndarray[tuple[int, ...], np.dtype[np.float64]], num_top: int) -> None:
    assert entry.logprob == pytest.approx(exact[entry.token_id], abs=2e-4)
    assert len(entry.top) == num_top
    values = [top.logprob for top in entry.top]
    assert values == sorted(values, reverse=True)
    np.testing.assert_allclose(values, np.sort(exact)[::-1][:num_top], atol=2e-4)
    for top in entry.top:
        assert top.logprob == pytest.approx(exact[top.token_id], abs=2e-4)


def test_scoring_without_an_answer(loaded: LoadedEngine) -> None:
    one = run_one(loaded.engine, ask("only read this", max_tokens=0, prompt_logprobs=0, echo=True))
    assert one.ids == []
    assert one.reason is FinishReason.LENGTH
    assert one.prompt is not None
    exact = reference_logprobs(loaded, one.prompt.token_ids)
    for position, entry in enumerate(one.prompt.logprobs[1:]):
        assert entry.logprob == pytest.approx(exact[position, entry.token_id], abs=2e-4)
        assert entry.top == []


def test_prompt_logprobs_survive_a_preemption(tiny_checkpoint: Path, engine: Engine) -> None:
    scored = ask("scored prompt, not so short", "scored", max_tokens=60, prompt_logprobs=1)
    expected = run_one(engine, scored)
    plan = plan_memory(load_model_config(tiny_checkpoint), OPTIONS)
    small = load_engine(tiny_checkpoint, replace(OPTIONS, memory=plan.total_bytes - plan.kv * 2 // 3)).engine
    older = [ask("an older one " * 3, f"older{i}", max_tokens=60) for i in range(2)]
    one = run(small, *older, scored)["scored", 0]
    assert small.stats.preemptions >= 1
    assert one.ids == expected.ids
    assert one.prompt is not None and expected.prompt is not None
    assert len(one.prompt.logprobs) == len(expected.prompt.logprobs)
    for got, want in zip(one.prompt.logprobs[1:], expected.prompt.logprobs[1:], strict=True):
        assert got.token_id == want.token_id
        assert got.logprob == pytest.approx(want.logprob, abs=1e-4)


# --- where an answer ends --------------------------------------------------------------------------------------------


def test_a_stop_string_across_token_borders_ends_the_answer_before_it(engine: Engine) -> None:
    free = run_one(engine, ask("tell", seed=6, max_tokens=40))
    assert free.text == bytes(free.ids).decode()
    stop = free.text[10:14]
    place = free.text.index(stop)
    one = run_one(engine, ask("tell", seed=6, max_tokens=40, stop=["never there", stop]))
    assert one.text == free.text[:place]
    assert one.ids == free.ids[: place + len(stop)]  # up to and with the one that completes it
    assert one.reason is FinishReason.STOP
    assert one.finish is not None
    assert one.finish.stop_text == stop


def test_half_a_stop_string_is_held_back_and_given_at_the_end(engine: Engine) -> None:
    free = run_one(engine, ask("tell", seed=6, max_tokens=12))
    one = run_one(engine, ask("tell", seed=6, max_tokens=12, stop=[free.text[-3:] + "!"]))
    assert one.text == free.text
    assert one.reason is FinishReason.LENGTH


def test_a_stop_string_waits_for_min_tokens(engine: Engine) -> None:
    free = run_one(engine, ask("tell", seed=6, max_tokens=40))
    stop = free.text[2]
    later = free.text.index(stop, 20)
    one = run_one(engine, ask("tell", seed=6, max_tokens=40, stop=[stop], min_tokens=20))
    assert one.text == free.text[:later]
    assert len(one.ids) == later + 1


def test_a_stop_id_counts_and_gives_no_text(engine: Engine) -> None:
    free = run_one(engine, ask("tell", seed=6, max_tokens=40))
    stop = free.ids[5]
    place = free.ids.index(stop)
    one = run_one(engine, ask("tell", seed=6, max_tokens=40, stop_token_ids=[stop]))
    assert one.ids == free.ids[: place + 1]
    assert one.text == free.text[:place]
    assert one.reason is FinishReason.STOP
    assert one.finish is not None
    assert (one.finish.stop_token_id, one.finish.usage.completion_tokens) == (stop, place + 1)


def test_min_tokens_keeps_stop_ids_from_being_drawn(engine: Engine) -> None:
    free = run_one(engine, ask("tell", seed=6, max_tokens=40))
    stop = free.ids[0]
    one = run_one(engine, ask("tell", seed=6, max_tokens=40, stop_token_ids=[stop], min_tokens=15))
    assert len(one.ids) > 15
    assert stop not in one.ids[:15]


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_the_checkpoints_stop_ids(engine: Engine, ignore_eos: bool) -> None:
    eos = engine.intake.defaults.stop_ids[0]
    sampling = Sampling(temperature=0.0, logit_bias={eos: 100.0})
    one = run_one(engine, ask("end", max_tokens=4, sampling=sampling, ignore_eos=ignore_eos))
    assert one.ids == ([eos] * 4 if ignore_eos else [eos])
    assert one.text == ""
    assert one.reason is (FinishReason.LENGTH if ignore_eos else FinishReason.STOP)


def test_rows_beyond_the_tokenizer_are_never_drawn(tiny_checkpoint: Path, tmp_path: Path) -> None:
    engine = load_engine(tiny_checkpoint, OPTIONS).engine
    engine.intake = replace(engine.intake, tokenizer=_Narrow(engine.intake.tokenizer, 120))  # type: ignore[type-var]
    one = run_one(engine, ask("wide", max_tokens=60, sampling=Sampling(temperature=5.0, seed=1)))
    assert max(one.ids) < 120


class _Narrow:
    """The tokenizer, knowing fewer ids."""

    def __init__(self, tokenizer: object, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)


# --- scripted logits -------------------------------------------------------------------------------------------------


TOOLS = b'[{"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}}}]'
CALL = "<tool_call>\n<function=add>\n<parameter=a>\n7\n</parameter>\n</function>\n</tool_call>"


def chat(text: str, tools: bytes = TOOLS, **fields: object) -> Request:
    messages = b'[{"role": "user", "content": "%s"}]' % text.encode()
    conversation = Conversation(messages=messages, tools=tools, template_kwargs=b'{"enable_thinking": false}')
    sampling = Sampling(temperature=0.0)
    return Request(request_id="r", prompt=conversation, sampling=sampling, **fields)  # type: ignore[arg-type]


def test_a_tool_call_before_the_stop_id_is_the_reason_to_end(loaded: LoadedEngine) -> None:
    tokenizer = loaded.engine.intake.tokenizer
    script = tokenizer.encode_raw(f"Let me see.\n\n{CALL}<|im_end|>")
    one = run_one(scripted(loaded.engine.intake, script), chat("add"))
    assert one.ids == script
    assert one.reason is FinishReason.TOOL_CALLS
    assert one.finish is not None
    assert one.finish.stop_token_id == script[-1]
    assert one.text == "Let me see."
    starts = [delta for delta in one.deltas if delta.kind is DeltaKind.TOOL_CALL_START]
    assert [delta.name for delta in starts] == ["add"]
    arguments = [delta.text for delta in one.deltas if delta.kind is DeltaKind.TOOL_CALL_ARGUMENTS]
    assert "".join(arguments).replace(" ", "") == '{"a":7}'


def test_a_tool_call_cut_by_the_length_is_length(loaded: LoadedEngine) -> None:
    script = loaded.engine.intake.tokenizer.encode_raw(CALL)
    one = run_one(scripted(loaded.engine.intake, script), chat("add", max_tokens=len(script)))
    assert one.reason is FinishReason.LENGTH


def test_without_tools_the_same_ids_are_text(loaded: LoadedEngine) -> None:
    script = loaded.engine.intake.tokenizer.encode_raw(f"{CALL}<|im_end|>")
    one = run_one(scripted(loaded.engine.intake, script), chat("add", tools=b""))
    assert one.reason is FinishReason.STOP
    assert one.text == CALL


def test_a_row_that_is_not_finite_fails_its_request_alone(loaded: LoadedEngine) -> None:
    engine = scripted(loaded.engine.intake, [97, 98], broken=frozenset({1}))
    answers = run(engine, ask("fine", "fine", max_tokens=4), ask("bad", "bad", max_tokens=4, n=2))
    assert answers["fine", 0].ids == [97, 98, 97, 98]
    for choice in (0, 1):
        finish = answers["bad", choice].finish
        assert finish is not None
        assert finish.reason is FinishReason.ERROR
        assert finish.error is not None
        assert finish.error.code == "internal_error"
    assert not engine.has_work


def test_an_answer_that_breaks_us_fails_alone_and_its_text_stays_out_of_the_log(
    loaded: LoadedEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    class Breaks:
        saw_tool_call = False
        stop_hit = None

        def push(self, ids: object) -> list[object]:
            raise ValueError(f"CANARY {ids}")

        def finish(self) -> list[object]:
            return []

    engine = scripted(loaded.engine.intake, [97])
    prepared = engine.intake.prepare(ask("bad", "bad", n=2), 0.0)
    engine.add(replace(prepared, parsers=[prepared.parsers[0], Breaks()]))
    answers = run(engine, ask("fine", "fine", max_tokens=3))
    assert answers["fine", 0].ids == [97] * 3
    for choice in (0, 1):
        assert answers["bad", choice].reason is FinishReason.ERROR
    log = capfd.readouterr().err
    assert "builtins.ValueError" in log
    assert "CANARY" not in log


def test_when_the_engine_cannot_go_on_everything_open_ends_with_the_error(loaded: LoadedEngine) -> None:
    engine = scripted(loaded.engine.intake, [97])
    for index in range(6):
        engine.add(ask("x", f"r{index}", max_tokens=9))
    engine.step()
    info = ErrorInfo(code="engine_failed", message="gone", retryable=True)
    outputs = engine.fail_all(info)
    assert [output.finish.error for output in outputs if output.finish] == [info] * 6
    assert [output.first_index for output in outputs] == [1, 1, 1, 1, 0, 0]
    assert drain(engine) == {}


def test_a_character_of_several_tokens_comes_whole(loaded: LoadedEngine) -> None:
    script = list("aé☃🐟!".encode())
    one = run_one(scripted(loaded.engine.intake, script), ask("x", max_tokens=len(script)))
    assert [delta.text for delta in one.deltas] == ["a", "é", "☃", "🐟", "!"]
    cut = run_one(scripted(loaded.engine.intake, script), ask("x", max_tokens=len(script) - 3))
    assert cut.text == "aé☃\ufffd"


def test_reasoning_is_told_apart_and_a_stop_string_in_it_does_not_end_the_answer(loaded: LoadedEngine) -> None:
    tokenizer = loaded.engine.intake.tokenizer
    script = tokenizer.encode_raw("<think>\nwell, stop\n</think>\n\nso stop here<|im_end|>")
    one = run_one(scripted(loaded.engine.intake, script), chat("think", stop=["stop"]))
    assert "".join(delta.text for delta in one.deltas if delta.kind is DeltaKind.REASONING) == "well, stop"
    assert one.text == "so "
    assert one.finish is not None
    assert one.finish.stop_text == "stop"
