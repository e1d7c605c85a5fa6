"""Which tokens of which sequences the next step computes. Pure: no tensor, no clock, no text.

Continuous batching at the level of one step. In order: every sequence that decodes gets its one token; what is left of the
token budget goes to sequences in prefill, oldest first, in chunks (small ones where others decode); then waiting ones are admitted, first come first served,
while a slot and the blocks of all their known ids are free.

Blocks run out only where a decoding sequence crosses into a new block. Then the youngest running sequence gives everything
back and waits at the head of the queue, to be computed anew from its prompt and generated ids. The oldest is never the
victim while another runs, and fits when alone, so every sequence ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from .block_manager import BlockManager
from .refusals import QueueFull
from .sequence import Sequence, SequenceStatus


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of a step and of the queue."""

    max_running: int
    """Sequences side by side: no more than there are state slots."""
    max_batched_tokens: int
    """Tokens a step computes. At least `max_running`, so that every sequence that decodes gets its token."""
    max_prefill_beside_decode: int
    """Prompt tokens of a step in which others decode: their next token waits for all of it."""
    max_waiting: int
    """Sequences that wait; beyond it `add` raises QueueFull."""
    max_scored_tokens: int
    """Prompt positions a step may score, for each costs a row of logits over the whole vocabulary."""
    cut_tokens: int = 1
    """Prompts are cut at multiples of this: at whole tiles of the model the cut changes no bit, so that an answer does not depend on
    what ran beside its prompt."""

    def __post_init__(self) -> None:
        smallest = min(
            self.max_running,
            self.max_prefill_beside_decode,
            self.max_waiting,
            self.max_scored_tokens,
            self.cut_tokens,
        )
        if smallest < 1:
            raise ValueError(f"limits must be positive: {self}")
        if self.max_batched_tokens < self.max_running:
            raise ValueError(f"max_batched_tokens must not be smaller than max_running: {self}")


class ScheduledRow(msgspec.Struct, frozen=True, gc=False):
    """A sequence's share of a step: `num_tokens` ids from position `start`. A struct, since each step makes some anew."""

    sequence: Sequence
    start: int
    num_tokens: int
    draws: bool
    """The step draws an id for this sequence: all known ids are computed after it, and the answer may go on."""
    scores: bool = False
    """The prompt is to be scored and not all of it is; `scored_range` may still be empty."""

    @classmethod
    def of(cls, sequence: Sequence, num_tokens: int) -> ScheduledRow:
        """Its next ids."""
        start = sequence.num_computed_tokens
        reads_last_token = start + num_tokens == sequence.num_tokens
        return cls(
            sequence,
            start,
            num_tokens,
            draws=reads_last_token and sequence.num_generated_tokens < sequence.max_new_tokens,
            scores=sequence.num_scored_tokens < sequence.num_prompt_tokens - 1,
        )

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def scored_range(self) -> range:
        """Positions whose logits score a prompt token (the successor) for the first time."""
        return range(
            max(self.start, self.sequence.num_scored_tokens), min(self.end, self.sequence.num_prompt_tokens - 1)
        )


class StepPlan(msgspec.Struct, frozen=True, gc=False):
    """What one step computes: decode rows first, then prefill, both by age."""

    rows: tuple[ScheduledRow, ...]
    preempted: tuple[Sequence, ...]

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)


class Scheduler:
    """`schedule`, let it be computed, `commit`. Between the two, `add` and `finish` must not be called."""

    def __init__(self, limits: SchedulerLimits, blocks: BlockManager) -> None:
        if limits.max_running > blocks.num_slots:
            raise ValueError(f"{limits.max_running} sequences side by side need as many slots, not {blocks.num_slots}")
        self.limits = limits
        self.blocks = blocks
        self.num_preemptions = 0
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # by age, oldest first

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def has_room(self, num_sequences: int) -> bool:
        """Whether so many more may be added now."""
        return len(self._waiting) + num_sequences <= self.limits.max_waiting

    def add(self, sequence: Sequence) -> None:
        """To the end of the queue. Raises QueueFull; ValueError for one that could never be computed."""
        if sequence.max_tokens_in_cache > self.blocks.capacity_tokens:
            raise ValueError(f"{sequence.max_tokens_in_cache} positions never fit into {self.blocks.capacity_tokens}")
        if not self.has_room(1):
            raise QueueFull(f"{self.num_waiting} sequences wait already")
        self._waiting.append(sequence)

    def finish(self, sequence: Sequence) -> None:
        """End it, whatever it is doing: its blocks and slot are free for the next step. Ending twice does nothing."""
        if sequence.status is SequenceStatus.RUNNING:
            self._running.remove(sequence)
            self.blocks.release(sequence.seq_id)
        elif sequence.status is SequenceStatus.WAITING:
            self._waiting.remove(sequence)
        sequence.status = SequenceStatus.FINISHED

    def schedule(self, max_tokens: int | None = None) -> StepPlan:
        """The next step, of so many tokens at most where the limits allow more. Empty only when there is no work."""
        preempted: list[Sequence] = []
        rows = self._decode_rows(preempted)
        if self._waiting or len(rows) < len(self._running):
            self._add_prefill(rows, preempted, max_tokens)
        return StepPlan(tuple(rows), tuple(preempted))

    def _add_prefill(self, rows: list[ScheduledRow], preempted: list[Sequence], max_tokens: int | None) -> None:
        num_tokens = self.limits.max_batched_tokens
        num_prefill_tokens = max((num_tokens if max_tokens is None else min(num_tokens, max_tokens)) - len(rows), 0)
        if rows:
            num_prefill_tokens = min(num_prefill_tokens, self.limits.max_prefill_beside_decode)
        budget = _Budget(num_prefill_tokens, self.limits.max_scored_tokens, self.limits.cut_tokens)
        for sequence in self._running:
            if not sequence.is_decoding:
                budget.add_chunk(rows, sequence)
        if not preempted:  # whoever just gave way would be let in at once, and give way again
            self._admit(rows, budget)

    def commit(self, plan: StepPlan, drawn: Mapping[int, int]) -> None:
        """The step was computed; `drawn` has the next id, by seq_id, of every row that draws.

        A sequence whose id could not be drawn is left out, and must be finished before the next `schedule`.
        """
        for row in plan.rows:
            sequence = row.sequence
            if row.scores:
                sequence.num_scored_tokens = max(sequence.num_scored_tokens, row.scored_range.stop)
            sequence.num_computed_tokens = row.start + row.num_tokens
            if row.draws and (token_id := drawn.get(sequence.seq_id)) is not None:
                sequence.token_ids.append(token_id)

    def _decode_rows(self, preempted: list[Sequence]) -> list[ScheduledRow]:
        rows: list[ScheduledRow] = []
        for sequence in self._running:  # of which whoever is pre-empted is the last
            if not sequence.is_decoding:
                continue
            while sequence.status is SequenceStatus.RUNNING:
                if self.blocks.grow(sequence.seq_id, len(sequence.token_ids)):
                    # Whoever decodes has scored its prompt, and would have ended with its last id.
                    rows.append(ScheduledRow(sequence, sequence.num_computed_tokens, 1, draws=True))
                    break
                # Oldest first, so the youngest has no row yet: it may be this one, or one in prefill.
                preempted.append(self._preempt_youngest())
        return rows

    def _preempt_youngest(self) -> Sequence:
        victim = self._running.pop()
        self.blocks.release(victim.seq_id)
        victim.status = SequenceStatus.WAITING
        victim.num_computed_tokens = 0
        victim.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting.appendleft(victim)  # older than all that wait
        return victim

    def _admit(self, rows: list[ScheduledRow], budget: _Budget) -> None:
        while self._waiting and len(self._running) < self.limits.max_running and budget.num_tokens > 0:
            sequence = self._waiting[0]
            # A block for each that runs: else the newcomer would soon be pushed out by their growth.
            if not self.blocks.admit(sequence.seq_id, sequence.num_tokens, spare_blocks=len(self._running)):
                break
            self._waiting.popleft()
            sequence.status = SequenceStatus.RUNNING
            self._running.append(sequence)
            budget.add_chunk(rows, sequence)


@dataclass(slots=True)
class _Budget:
    """What is left of a step for prefill."""

    num_tokens: int
    num_scored_tokens: int
    cut_tokens: int
    has_given: bool = False
    """Some prompt has a share already."""

    def add_chunk(self, rows: list[ScheduledRow], sequence: Sequence) -> None:
        """As much of the sequence as fits, possibly nothing."""
        start = sequence.num_computed_tokens
        row = ScheduledRow.of(sequence, min(sequence.num_uncomputed_tokens, self.num_tokens))
        num_excess = len(row.scored_range) - self.num_scored_tokens
        if num_excess > 0:
            row = ScheduledRow.of(sequence, row.scored_range.stop - num_excess - start)
        if row.end < sequence.num_tokens:
            aligned = row.end // self.cut_tokens * self.cut_tokens - start
            if aligned > 0 or self.has_given:  # less than that waits for the next step, but never the first one in line
                row = ScheduledRow.of(sequence, max(aligned, 0))
        if row.num_tokens > 0:
            self.has_given = True
            rows.append(row)
            self.num_tokens -= row.num_tokens
            self.num_scored_tokens -= len(row.scored_range)
