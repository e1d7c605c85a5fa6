"""A step plan in, logits out, by the native engine: the one file between the scheduler's integers and its arrays. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from shoal.kernels.cpu.engine import Engine, Step, TopRequest
from shoal.kernels.cpu.engine import StepResult as NativeResult

from .block_manager import BlockManager
from .scheduler import ScheduledRow, StepPlan
from .step_result import Candidates, CandidatesWanted, RowLogits, StepResult

Int32 = npt.NDArray[np.int32]


class NativeRunner:
    """The engine, and the books that say which pages and slots are whose. Rows of logits are written into one buffer of its own."""

    def __init__(self, engine: Engine, blocks: BlockManager, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._blocks = blocks
        self._clock = clock
        self._vocab_size = engine.shape.vocab_size
        # Its pages come when a row is first asked for: most requests never do.
        self._logits = np.zeros((engine.sizes.max_full_rows, self._vocab_size), dtype=np.float32)
        self._no_row = self._logits[:0]

    def execute(self, plan: StepPlan, wanted: Sequence[CandidatesWanted | None]) -> StepResult:
        """Compute the step in one call. What the engine raises comes out."""
        step = self._step(plan, wanted)
        num_full = 0 if step.full_at is None else len(step.full_at)
        full = self._logits[:num_full]
        started_at = self._clock()
        result = self._engine.step(step, full)
        forward_s = self._clock() - started_at
        return StepResult(self._split(plan.rows, wanted, result), forward_s)

    def _step(self, plan: StepPlan, wanted: Sequence[CandidatesWanted | None]) -> Step:
        token_ids: list[int] = []
        rows: list[tuple[int, int, int, int]] = []
        tables: list[Int32] = []
        num_pages = 0
        full_at: list[int] = []
        top: list[TopRequest] = []
        for row, wish in zip(plan.rows, wanted, strict=True):
            sequence = row.sequence
            table = np.frombuffer(self._blocks.table(sequence.seq_id), dtype=np.int32)
            rows.append((row.num_tokens, row.start, self._blocks.slot(sequence.seq_id), num_pages))
            tables.append(table)
            num_pages += len(table)
            if row.num_tokens == 1:
                token_ids.append(sequence.token_ids[row.start])
            else:
                token_ids += sequence.token_ids[row.start : row.end]
            last = len(token_ids) - 1
            if row.may_score:
                full_at += [last - row.end + 1 + position for position in row.scored_range]
            if wish is not None:
                adjusted = (wish.ids, wish.values) if len(wish.ids) else ()
                top.append(TopRequest(last, wish.count, *adjusted))
            elif row.draws:
                full_at.append(last)
        return Step(
            token_ids=np.array(token_ids, dtype=np.int32),
            rows=np.array(rows, dtype=np.int32),
            # A copy: the books' own table cannot grow while something looks into it.
            tables=tables[0].copy() if len(tables) == 1 else np.concatenate(tables),
            full_at=np.array(full_at, dtype=np.int32) if full_at else None,
            top=top,
        )

    def _split(
        self, rows: Sequence[ScheduledRow], wanted: Sequence[CandidatesWanted | None], result: NativeResult
    ) -> list[RowLogits]:
        split: list[RowLogits] = []
        at = next_top = 0
        for row, wish in zip(rows, wanted, strict=True):
            num_scored = len(row.scored_range) if row.may_score else 0
            scored = result.full[at : at + num_scored] if num_scored else self._no_row
            at += num_scored
            last: npt.NDArray[np.float32] | Candidates | None = None
            if wish is not None:
                best = result.top[next_top]
                next_top += 1
                last = Candidates(best.ids, best.adjusted)
            elif row.draws:
                last = result.full[at]
                at += 1
            split.append(RowLogits(scored, last))
        return split
