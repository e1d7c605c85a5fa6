"""Any mix of requests, aborts and steps on any small pool: every answer is what its prompt alone determines.

The model here is made of integers, but keeps its past where the real one does: tokens in the blocks of the block table, a
running hash in the slot. It reads both back at every position, so that a block or slot in the wrong hands changes an answer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from engine_driver import Answers, collect  # type: ignore[import-not-found]
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.runtime.batch import Batch
from shoal.runtime.block_manager import BlockManager
from shoal.runtime.engine import Engine
from shoal.runtime.intake import Intake
from shoal.runtime.model_runner import ModelRunner
from shoal.runtime.scheduler import Scheduler, SchedulerLimits
from shoal.runtime.wire import FinishReason, IdsPrompt, Request, Sampling

BLOCK_TOKENS = 4
HEAD_ROWS = 300
MODULUS = 1_000_003
MIN_BLOCKS = 10
MAX_LENGTH = MIN_BLOCKS * BLOCK_TOKENS


def mix(state: int, token_id: int) -> int:
    return (state * 31 + token_id + 1) % MODULUS


def next_id(state: int) -> int:
    return 97 + state % 26


def expected_answer(prompt: list[int], length: int) -> list[int]:
    state = 0
    for token_id in prompt:
        state = mix(state, token_id)
    answer = []
    for _ in range(length):
        answer.append(next_id(state))
        state = mix(state, answer[-1])
    return answer


class IntegerModel:
    """`forward` of a model whose next id is a function of all ids so far."""

    def __init__(self, num_blocks: int, num_slots: int) -> None:
        self._blocks = [[-1] * BLOCK_TOKENS for _ in range(num_blocks)]
        self._slots = [12345] * num_slots

    def forward(self, batch: Batch, cache: Any) -> torch.Tensor:
        batch.check(
            vocab_size=HEAD_ROWS, num_blocks=len(self._blocks), block_tokens=BLOCK_TOKENS, num_slots=len(self._slots)
        )
        states: list[int] = []
        at = 0
        for row in batch.rows:
            for position in range(row.start, row.end):
                token_id = batch.token_ids[at]
                at += 1
                self._blocks[row.block_table[position // BLOCK_TOKENS]][position % BLOCK_TOKENS] = token_id
                self._slots[row.slot] = mix(self._slots[row.slot] if position else 0, token_id)
                states.append(self._slots[row.slot])
            from_blocks = 0
            for position in range(row.end):
                block = self._blocks[row.block_table[position // BLOCK_TOKENS]]
                from_blocks = mix(from_blocks, block[position % BLOCK_TOKENS])
            assert from_blocks == self._slots[row.slot], "blocks and slot tell different stories"
        logits = torch.zeros(len(batch.logits_at), HEAD_ROWS)
        for line, index in enumerate(batch.logits_at):
            logits[line, next_id(states[index])] = 40.0
        return logits


ADD = st.tuples(
    st.just("add"), st.lists(st.integers(0, 255), min_size=1, max_size=20), st.integers(0, 18), st.integers(1, 3),
    st.booleans(),
)  # fmt: skip
OPERATIONS = st.lists(
    st.one_of(ADD, st.tuples(st.just("abort"), st.integers(0, 30)), st.just(("step",))), min_size=1, max_size=30
)


@given(
    operations=OPERATIONS,
    num_blocks=st.integers(MIN_BLOCKS, 24),
    num_slots=st.integers(1, 4),
    budget=st.integers(4, 24),
)
@settings(max_examples=150)
def test_whatever_happens_answers_are_whole_and_nothing_is_left_behind(
    tiny_intake: Intake, operations: list[Any], num_blocks: int, num_slots: int, budget: int
) -> None:
    blocks = BlockManager(num_blocks=num_blocks, num_slots=num_slots, block_tokens=BLOCK_TOKENS)
    limits = SchedulerLimits(
        max_running=num_slots,
        max_batched_tokens=budget,
        max_prefill_beside_decode=7,
        max_waiting=100,
        max_scored_tokens=5,
    )
    runner = ModelRunner(IntegerModel(num_blocks, num_slots), None, blocks, lambda: 0.0)  # type: ignore[arg-type]
    engine = Engine(
        replace(tiny_intake, max_model_len=MAX_LENGTH), Scheduler(limits, blocks), runner, clock=lambda: 0.0
    )
    answers: Answers = {}
    requests: list[Request] = []
    aborted: set[str] = set()
    for operation in operations:
        match operation:
            case ("add", prompt, length, n, scores):
                request = Request(
                    request_id=f"r{len(requests)}",
                    prompt=IdsPrompt(token_ids=prompt),
                    sampling=Sampling(temperature=0.0),
                    n=n,
                    max_tokens=length,
                    prompt_logprobs=0 if scores else None,
                    echo=True,
                )
                requests.append(request)
                engine.add(request)
            case ("abort", index):
                name = f"r{index}"
                outputs = engine.abort((name, 0))
                if outputs:
                    aborted.add(name)
                collect(answers, outputs)
            case _:
                collect(answers, engine.step())
        engine.check_books()
    for _ in range(3000):
        if not engine.has_work:
            break
        collect(answers, engine.step())
    stats = engine.stats
    assert (stats.running, stats.waiting, stats.kv_blocks_used, stats.state_slots_used) == (0, 0, 0, 0)
    for request in requests:
        assert isinstance(request.prompt, IdsPrompt)
        whole = expected_answer(request.prompt.token_ids, request.max_tokens or 0)
        for choice in range(request.n):
            one = answers[request.request_id, choice]
            assert one.finish is not None
            assert one.text == bytes(one.ids).decode()
            assert one.ids == whole[: len(one.ids)]
            if one.reason is FinishReason.ABORT:
                assert request.request_id in aborted
                continue
            assert one.reason is FinishReason.LENGTH
            assert one.ids == whole
            assert (one.prompt is None) == (choice > 0)
            if choice == 0 and request.prompt_logprobs is not None:
                assert one.prompt is not None
                assert [entry.token_id for entry in one.prompt.logprobs] == request.prompt.token_ids
