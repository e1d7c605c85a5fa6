"""Training batches: conversations of one pool sorted by length, cut into batches and shuffled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from models.pocket.curriculum import Mix, training_conversation
from models.pocket.delta_rule import chunk_length
from models.pocket.tokenizer import Encoder

BATCH = 4096  # padded tokens a step
POOL = 16  # batches a pool
LONGEST = 1600  # tokens; longer conversations are dropped


@dataclass(frozen=True)
class Batch:
    """ids [B, T] padded on the right, flat positions [n] whose next token carries loss, those tokens [n]."""

    ids: Tensor
    select: Tensor
    targets: Tensor
    chunk: int
    tokens: int


Row = tuple[list[int], list[bool]]


def collate(rows: list[Row]) -> Batch:
    """Pad encoded conversations to one length that the delta rule divides into chunks."""
    T, chunk = chunk_length(max(len(ids) for ids, _ in rows))
    ids = torch.zeros(len(rows), T, dtype=torch.long)
    select: list[int] = []
    targets: list[int] = []
    for b, (row, loss) in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row)
        for t in range(len(row) - 1):
            if loss[t + 1]:
                select.append(b * T + t)
                targets.append(row[t + 1])
    total = sum(len(row) for row, _ in rows)
    return Batch(ids, torch.tensor(select), torch.tensor(targets), chunk, total)


def pool(seed: int, index: int, mix: Mix, encoder: Encoder) -> list[Batch]:
    """All batches of pool ``index``: a pure function of its arguments."""
    rng = Random(f"pocket/{seed}/{index}")
    rows: list[Row] = []
    total = 0
    while total < POOL * BATCH:
        row = encoder.conversation(training_conversation(rng, mix, encoder.count))
        if len(row[0]) <= LONGEST:
            rows.append(row)
            total += len(row[0])
    rows.sort(key=lambda r: len(r[0]))
    batches: list[Batch] = []
    group: list[Row] = []
    for row in rows:
        if group and (len(group) + 1) * chunk_length(len(row[0]))[0] > BATCH:
            batches.append(collate(group))
            group = []
        group.append(row)
    batches.append(collate(group))
    rng.shuffle(batches)
    return batches


class Stream:
    """Batches in order; its position is two numbers and the step at which the pool began."""

    def __init__(self, seed: int, encoder: Encoder, mix: Callable[[int], Mix]) -> None:
        self.seed, self.encoder, self.mix = seed, encoder, mix
        self.index, self.at, self.began = -1, 0, 0
        self.batches: list[Batch] = []

    def next(self, step: int) -> Batch:
        """The batch of this step."""
        if self.at >= len(self.batches):
            self.index, self.at, self.began = self.index + 1, 0, step
            self.batches = pool(self.seed, self.index, self.mix(step), self.encoder)
        self.at += 1
        return self.batches[self.at - 1]

    def state(self) -> tuple[int, int, int]:
        return self.index, self.at, self.began

    def restore(self, state: tuple[int, int, int]) -> None:
        """Draw the current pool again and go to the place in it."""
        self.index, self.at, self.began = state
        if self.index >= 0:
            self.batches = pool(self.seed, self.index, self.mix(self.began), self.encoder)
