"""A step plan in, rows of logits out: the one file between the scheduler's integers and the model's tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from .batch import Batch, Row
from .block_manager import BlockManager
from .cache import HybridCache
from .scheduler import ScheduledRow, StepPlan
from .step_result import CandidatesWanted, RowLogits, StepResult


class ForwardModel(Protocol):
    """What of `model.HybridModel` is used."""

    def forward(self, batch: Batch, cache: HybridCache) -> torch.Tensor:
        """[len(logits_at), V] f32, a row for each wanted position."""


class ModelRunner:
    """Model, cache, and the books that say which part of the cache is whose."""

    def __init__(
        self, model: ForwardModel, cache: HybridCache, blocks: BlockManager, clock: Callable[[], float]
    ) -> None:
        self._model = model
        self._cache = cache
        self._blocks = blocks
        self._clock = clock

    def execute(self, plan: StepPlan, wanted: Sequence[CandidatesWanted | None]) -> StepResult:
        """Compute the step; every wish is answered by the whole row. Whatever the model raises comes out."""
        batch = self._batch(plan)
        started_at = self._clock()
        with torch.inference_mode():
            logits = self._model.forward(batch, self._cache).to(device="cpu", dtype=torch.float32)
        forward_s = self._clock() - started_at
        return StepResult(_split(plan.rows, logits.numpy()), forward_s)

    def _batch(self, plan: StepPlan) -> Batch:
        token_ids: list[int] = []
        rows: list[Row] = []
        logits_at: list[int] = []
        for row in plan.rows:
            sequence = row.sequence
            offset = len(token_ids) - row.start
            token_ids += sequence.token_ids[row.start : row.end]
            table = tuple(self._blocks.table(sequence.seq_id))
            rows.append(Row(row.num_tokens, row.start, table, self._blocks.slot(sequence.seq_id)))
            logits_at += [offset + position for position in row.scored_range]
            if row.draws:
                logits_at.append(offset + row.end - 1)
        return Batch(token_ids, rows, logits_at)


def _split(rows: Sequence[ScheduledRow], logits: npt.NDArray[np.float32]) -> list[RowLogits]:
    results: list[RowLogits] = []
    at = 0
    for row in rows:
        num_scored = len(row.scored_range)
        scored = logits[at : at + num_scored]
        at += num_scored
        last = logits[at] if row.draws else None
        at += row.draws
        results.append(RowLogits(scored, last))
    return results
