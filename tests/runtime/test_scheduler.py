"""The plan of each step, without a model: order, budgets, pre-emption, and that every sequence ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.runtime.block_manager import BlockManager
from shoal.runtime.refusals import QueueFull
from shoal.runtime.scheduler import Scheduler, SchedulerLimits, StepPlan
from shoal.runtime.sequence import Sequence, SequenceStatus


def make(
    *,
    blocks: int = 64,
    slots: int = 4,
    block_tokens: int = 4,
    budget: int = 16,
    beside: int = 1000,
    waiting: int = 100,
    scored: int = 5,
    cut: int = 1,
) -> Scheduler:
    limits = SchedulerLimits(
        max_running=slots,
        max_batched_tokens=budget,
        max_prefill_beside_decode=beside,
        max_waiting=waiting,
        max_scored_tokens=scored,
        cut_tokens=cut,
    )
    return Scheduler(limits, BlockManager(num_blocks=blocks, num_slots=slots, block_tokens=block_tokens))


def sequence(seq_id: int, prompt: int, answer: int, *, scores: bool = False) -> Sequence:
    return Sequence(seq_id, list(range(1, prompt + 1)), max_new_tokens=answer, scores_prompt=scores)


def step(scheduler: Scheduler, *, finish: bool = True) -> StepPlan:
    """One step in which the n-th generated id of sequence s is 1000 * s + n."""
    plan = scheduler.schedule()
    drawn = {
        row.sequence.seq_id: 1000 * row.sequence.seq_id + row.sequence.num_generated_tokens
        for row in plan.rows
        if row.draws
    }
    scheduler.commit(plan, drawn)
    if finish:
        for row in plan.rows:
            if row.sequence.is_exhausted:
                scheduler.finish(row.sequence)
    return plan


def shape(plan: StepPlan) -> list[tuple[int, int, int]]:
    return [(row.sequence.seq_id, row.start, row.num_tokens) for row in plan.rows]


def test_a_long_prompt_is_cut_at_the_budget_and_then_decodes() -> None:
    scheduler = make(budget=8)
    scheduler.add(sequence(0, 20, 2))
    assert shape(step(scheduler)) == [(0, 0, 8)]
    assert shape(step(scheduler)) == [(0, 8, 8)]
    assert shape(step(scheduler)) == [(0, 16, 4)]
    assert shape(step(scheduler)) == [(0, 20, 1)]
    assert not scheduler.has_work


def test_decode_comes_first_and_prefill_takes_what_is_left() -> None:
    scheduler = make(budget=8)
    scheduler.add(sequence(0, 3, 5))
    step(scheduler)
    scheduler.add(sequence(1, 30, 1))
    scheduler.add(sequence(2, 4, 1))
    assert shape(step(scheduler)) == [(0, 3, 1), (1, 0, 7)]
    assert shape(step(scheduler)) == [(0, 4, 1), (1, 7, 7)]


def test_prompts_are_cut_at_whole_tiles_but_the_first_in_line_always_moves() -> None:
    scheduler = make(budget=16, cut=8, blocks=64)
    for seq_id, prompt in enumerate((3, 30, 30)):
        scheduler.add(sequence(seq_id, prompt, 1))
    assert shape(step(scheduler)) == [(0, 0, 3), (1, 0, 8)]  # five tokens are left unused
    assert shape(step(scheduler)) == [(1, 8, 16)]
    assert shape(step(scheduler)) == [(1, 24, 6), (2, 0, 8)]
    short = make(budget=5, cut=8)
    short.add(sequence(0, 12, 1))
    assert shape(step(short)) == [(0, 0, 5)]  # less than a tile is all that there is
    assert shape(step(short)) == [(0, 5, 3)]
    assert shape(step(short)) == [(0, 8, 4)]


def test_a_prompt_is_read_in_smaller_chunks_while_others_decode() -> None:
    scheduler = make(budget=16, beside=5)
    scheduler.add(sequence(0, 3, 4))
    scheduler.add(sequence(1, 30, 1))
    assert shape(step(scheduler)) == [(0, 0, 3), (1, 0, 13)]  # nobody decodes yet
    assert shape(step(scheduler)) == [(0, 3, 1), (1, 13, 5)]
    scheduler.add(sequence(2, 8, 1))
    assert shape(step(scheduler)) == [(0, 4, 1), (1, 18, 5)]
    assert shape(step(scheduler)) == [(0, 5, 1), (1, 23, 5)]
    assert shape(step(scheduler)) == [(1, 28, 2), (2, 0, 8)]


def test_one_step_takes_in_as_many_as_fit() -> None:
    scheduler = make(budget=8, slots=2)
    for seq_id in range(3):
        scheduler.add(sequence(seq_id, 3, 2))
    assert shape(step(scheduler)) == [(0, 0, 3), (1, 0, 3)]
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)


def test_first_come_first_served_even_where_the_next_would_fit() -> None:
    scheduler = make(blocks=4, block_tokens=4)
    scheduler.add(sequence(0, 8, 5))
    step(scheduler)
    scheduler.add(sequence(1, 12, 1))
    scheduler.add(sequence(2, 1, 1))
    step(scheduler)
    assert scheduler.num_waiting == 2


def test_the_youngest_gives_way_when_blocks_run_out() -> None:
    scheduler = make(blocks=4, block_tokens=4, slots=2)
    old, young = sequence(0, 8, 9), sequence(1, 4, 9)
    scheduler.add(old)
    scheduler.add(young)
    step(scheduler, finish=False)  # 2 blocks and 1; the old one grows into the fourth
    plan = step(scheduler)
    assert plan.preempted == (young,)
    assert shape(plan) == [(0, 8, 1)]
    assert young.status is SequenceStatus.WAITING
    assert young.num_computed_tokens == 0
    assert young.token_ids == [1, 2, 3, 4, 1000]  # what was drawn stays drawn
    while scheduler.has_work:
        step(scheduler)
    assert old.token_ids[8:] == list(range(9))
    assert young.token_ids[4:] == [1000 + n for n in range(9)]


def test_nobody_is_let_in_without_a_spare_block_for_those_who_run() -> None:
    scheduler = make(blocks=3, block_tokens=4, slots=2)
    scheduler.add(sequence(0, 5, 2))
    step(scheduler)
    scheduler.add(sequence(1, 4, 3))
    plan = step(scheduler)
    assert shape(plan) == [(0, 5, 1)]


def test_a_preempted_sequence_is_computed_anew_in_one_piece_with_its_answer() -> None:
    scheduler = make(blocks=4, block_tokens=4, slots=2, budget=32)
    scheduler.add(sequence(0, 8, 3))
    scheduler.add(sequence(1, 4, 9))
    step(scheduler)
    assert scheduler.num_preemptions == 0
    step(scheduler)
    assert scheduler.num_preemptions == 1
    step(scheduler)
    assert shape(step(scheduler)) == [(1, 0, 5)]


def test_scored_positions_are_bounded_a_step() -> None:
    scheduler = make(budget=16, scored=5)
    scheduler.add(sequence(0, 12, 1, scores=True))
    scored: list[list[int]] = []
    shapes: list[list[tuple[int, int, int]]] = []
    for _ in range(3):
        plan = scheduler.schedule()
        scored.append(list(plan.rows[0].scored_range))
        shapes.append(shape(plan))
        scheduler.commit(plan, {0: 7} if plan.rows[0].draws else {})
    assert shapes == [[(0, 0, 5)], [(0, 5, 5)], [(0, 10, 2)]]
    assert scored == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10]]


def test_what_was_scored_before_a_preemption_is_not_scored_again() -> None:
    one = sequence(0, 12, 1, scores=True)
    one.num_scored_tokens = 7
    scheduler = make(budget=16, scored=5)
    scheduler.add(one)
    plan = scheduler.schedule()
    assert shape(plan) == [(0, 0, 12)]
    assert list(plan.rows[0].scored_range) == [7, 8, 9, 10]
    scheduler.commit(plan, {0: 7})
    assert one.num_scored_tokens == 11


def test_an_answer_of_no_tokens_ends_after_its_prefill_without_a_draw() -> None:
    scheduler = make()
    scheduler.add(sequence(0, 6, 0))
    plan = scheduler.schedule()
    assert not plan.rows[0].draws
    scheduler.commit(plan, {})
    assert plan.rows[0].sequence.is_exhausted


def test_the_queue_is_bounded() -> None:
    scheduler = make(waiting=2)
    scheduler.add(sequence(0, 1, 1))
    assert scheduler.has_room(1)
    assert not scheduler.has_room(2)
    scheduler.add(sequence(1, 1, 1))
    with pytest.raises(QueueFull):
        scheduler.add(sequence(2, 1, 1))


def test_what_could_never_be_computed_is_not_taken() -> None:
    scheduler = make(blocks=2, block_tokens=4)
    with pytest.raises(ValueError, match="never fit"):
        scheduler.add(sequence(0, 6, 4))
    scheduler.add(sequence(0, 6, 3))


def test_ending_twice_does_nothing() -> None:
    scheduler = make()
    one = sequence(0, 3, 3)
    scheduler.add(one)
    step(scheduler)
    for _ in range(2):
        scheduler.finish(one)
    assert scheduler.blocks.num_used_blocks == scheduler.blocks.num_used_slots == 0


@pytest.mark.parametrize(
    "field", ["max_running", "max_waiting", "max_scored_tokens", "max_batched_tokens", "max_prefill_beside_decode"]
)
def test_limits_are_positive(field: str) -> None:
    values = {"max_running": 2, "max_batched_tokens": 4, "max_waiting": 2, "max_scored_tokens": 2}
    values |= {"max_prefill_beside_decode": 2, field: 0}
    with pytest.raises(ValueError, match="max_"):
        SchedulerLimits(**values)


def test_slots_bound_what_runs() -> None:
    limits = SchedulerLimits(
        max_running=3, max_batched_tokens=8, max_prefill_beside_decode=8, max_waiting=1, max_scored_tokens=1
    )
    with pytest.raises(ValueError, match="as many slots"):
        Scheduler(limits, BlockManager(num_blocks=4, num_slots=2, block_tokens=4))


@given(
    requests=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 12), st.booleans()), min_size=1, max_size=12),
    blocks=st.integers(8, 16),
    slots=st.integers(1, 5),
    budget=st.integers(5, 24),
    scored=st.integers(1, 6),
)
@settings(max_examples=150)
def test_every_sequence_ends_with_the_answer_it_would_have_alone(
    requests: list[tuple[int, int, bool]], blocks: int, slots: int, budget: int, scored: int
) -> None:
    scheduler = make(blocks=blocks, slots=slots, block_tokens=4, budget=budget, scored=scored)
    sequences = [sequence(i, prompt, answer, scores=scores) for i, (prompt, answer, scores) in enumerate(requests)]
    for one in sequences:
        scheduler.add(one)
    # Each step either computes tokens or ends; a pre-emption throws away at most what one sequence has.
    for _ in range(5000):
        if not scheduler.has_work:
            break
        plan = step(scheduler)
        assert plan.rows
        scheduler.blocks.check_books()
    assert not scheduler.has_work
    for one in sequences:
        assert one.token_ids[one.num_prompt_tokens :] == [1000 * one.seq_id + n for n in range(one.max_new_tokens)]
        assert one.num_scored_tokens == one.num_prompt_tokens - 1
    assert scheduler.blocks.num_used_blocks == scheduler.blocks.num_used_slots == 0


class Steps(RuleBasedStateMachine):
    """Requests come and go at any moment between steps."""

    @initialize(
        blocks=st.integers(6, 14), slots=st.integers(1, 4), budget=st.integers(4, 20), beside=st.integers(1, 20)
    )
    def start(self, blocks: int, slots: int, budget: int, beside: int) -> None:
        self.scheduler = make(blocks=blocks, slots=slots, block_tokens=4, budget=budget, beside=beside, waiting=6)
        self.alive: dict[int, Sequence] = {}
        self.next_id = 0

    @rule(prompt=st.integers(1, 18), answer=st.integers(1, 6), scores=st.booleans())
    def add(self, prompt: int, answer: int, scores: bool) -> None:
        one = sequence(self.next_id, prompt, answer, scores=scores)
        self.next_id += 1
        if self.scheduler.has_room(1):
            self.scheduler.add(one)
            self.alive[one.seq_id] = one
        else:
            with pytest.raises(QueueFull):
                self.scheduler.add(one)

    @precondition(lambda self: getattr(self, "alive", None))
    @rule(pick=st.integers(0, 1000))
    def abort(self, pick: int) -> None:
        seq_id = sorted(self.alive)[pick % len(self.alive)]
        self.scheduler.finish(self.alive.pop(seq_id))

    @rule()
    def step(self) -> None:
        limits = self.scheduler.limits
        plan = self.scheduler.schedule()
        assert bool(plan.rows) == bool(self.alive)
        assert plan.num_tokens <= limits.max_batched_tokens
        num_decoded = sum(row.sequence.is_decoding for row in plan.rows)
        assert not num_decoded or plan.num_tokens - num_decoded <= limits.max_prefill_beside_decode
        assert sum(len(row.scored_range) for row in plan.rows) <= limits.max_scored_tokens
        assert len({row.sequence.seq_id for row in plan.rows}) == len(plan.rows) <= limits.max_running
        decoding = {one.seq_id for one in self.alive.values() if one.is_decoding}
        assert decoding <= {row.sequence.seq_id for row in plan.rows}  # nobody who decodes is kept waiting
        for row in plan.rows:
            assert row.start == row.sequence.num_computed_tokens
            assert 0 < row.num_tokens <= row.sequence.num_uncomputed_tokens
            covered = len(self.scheduler.blocks.table(row.sequence.seq_id)) * self.scheduler.blocks.block_tokens
            assert row.end <= covered
        for one in plan.preempted:
            assert one.status is SequenceStatus.WAITING
            assert all(one.seq_id > row.sequence.seq_id for row in plan.rows)
        self.scheduler.commit(plan, {row.sequence.seq_id: 1 for row in plan.rows if row.draws})
        for row in plan.rows:
            if row.sequence.is_exhausted:
                self.scheduler.finish(row.sequence)
                del self.alive[row.sequence.seq_id]

    @invariant()
    def balanced(self) -> None:
        if not hasattr(self, "alive"):
            return
        self.scheduler.blocks.check_books()
        running = [one for one in self.alive.values() if one.status is SequenceStatus.RUNNING]
        assert self.scheduler.num_running == len(running) == self.scheduler.blocks.num_used_slots
        assert self.scheduler.num_waiting == len(self.alive) - len(running)
        # Whoever waits came after whoever runs.
        waiting = [one.seq_id for one in self.alive.values() if one.status is SequenceStatus.WAITING]
        assert not waiting or not running or max(one.seq_id for one in running) < min(waiting)

    def teardown(self) -> None:
        for _ in range(2000):
            if not getattr(self, "alive", None):
                break
            self.step()
        assert not getattr(self, "alive", None)


TestSteps = Steps.TestCase
TestSteps.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
