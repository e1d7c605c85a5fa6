"""A step plan in, logits out, by the native engine: the one file between the scheduler's integers and its arrays. No torch."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from shoal.kernels.cpu.engine import Engine, TopRequest

from .block_manager import BlockManager
from .scheduler import StepPlan
from .step_result import Candidates, CandidatesWanted, RowLogits, StepResult


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
        token_ids: list[int] = []
        rows: list[int] = []  # four numbers each, see Engine.step
        tables: list[array[int]] = []
        full_at: list[int] = []
        top: list[TopRequest] = []
        num_pages = 0
        for row, wish in zip(plan.rows, wanted, strict=True):
            sequence, start, num_tokens = row.sequence, row.start, row.num_tokens
            table = self._blocks.table(sequence.seq_id)
            rows += (num_tokens, start, self._blocks.slot(sequence.seq_id), num_pages)
            tables.append(table)
            num_pages += len(table)
            if num_tokens == 1:
                token_ids.append(sequence.token_ids[start])
            else:
                token_ids += sequence.token_ids[start : start + num_tokens]
            last = len(token_ids) - 1
            if row.scores:
                full_at += [last - row.end + 1 + position for position in row.scored_range]
            if wish is not None:
                top.append(TopRequest(last, wish.count, wish.ids, wish.values))
            elif row.draws:
                full_at.append(last)
        full = self._logits[: len(full_at)] if full_at else None
        started_at = self._clock()
        best = self._engine.step(token_ids, rows, tables, top, full_at, full)
        forward_s = self._clock() - started_at
        results: list[RowLogits] = []
        at = next_top = 0
        for row, wish in zip(plan.rows, wanted, strict=True):
            scored = self._no_row
            if row.scores:
                num_scored = len(row.scored_range)
                scored = self._logits[at : at + num_scored]
                at += num_scored
            last_logits: npt.NDArray[np.float32] | Candidates | None = None
            if wish is not None:
                ids, adjusted, _ = best[next_top]
                next_top += 1
                last_logits = Candidates(ids, adjusted)
            elif row.draws:
                last_logits = self._logits[at]
                at += 1
            results.append(RowLogits(scored, last_logits))
        return StepResult(results, forward_s)
