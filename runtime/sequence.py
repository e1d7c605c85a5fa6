"""One sequence: the ids of a prompt and of its answer, and how far the model has read them. Pure.

    status     meaning                                                 left when
    WAITING    holds no block and no slot; nothing computed            admitted -> RUNNING, ended -> FINISHED
    RUNNING    holds a slot and blocks; part of it is computed         pre-empted -> WAITING, ended -> FINISHED
    FINISHED   holds nothing                                           never

There is no separate state for prefill and decode: a step computes the next `n` of the ids that are known, and where the
last known id is among them, one more is drawn. Decode is the case n = 1; a pre-empted sequence is one that starts at 0 again
with a longer list of known ids.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence as Ids


class SequenceStatus(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """Counters end in `_tokens`; what follows from them is a property. `seq_id` grows with arrival."""

    __slots__ = (
        "max_new_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "num_scored_tokens",
        "seq_id",
        "status",
        "token_ids",
    )

    def __init__(self, seq_id: int, prompt_ids: Ids[int], *, max_new_tokens: int, scores_prompt: bool = False) -> None:
        if not prompt_ids or max_new_tokens < 0:
            raise ValueError("a sequence has at least one prompt token and no negative length")
        self.seq_id = seq_id
        self.token_ids = list(prompt_ids)
        """Prompt ids, then generated ids."""
        self.num_prompt_tokens = len(prompt_ids)
        self.max_new_tokens = max_new_tokens
        self.num_computed_tokens = 0
        """Ids whose keys, values and state are in the cache."""
        self.num_scored_tokens = 0 if scores_prompt else self.num_prompt_tokens - 1
        """Prompt positions whose successor's logprob is known, or not asked for. Survives a pre-emption."""
        self.num_preemptions = 0
        self.status = SequenceStatus.WAITING

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def is_decoding(self) -> bool:
        """Only the id drawn last is still to be read."""
        num_tokens = len(self.token_ids)
        return num_tokens - self.num_computed_tokens == 1 and num_tokens > self.num_prompt_tokens

    @property
    def max_tokens_in_cache(self) -> int:
        """Positions that it may come to need: the last drawn id is never read."""
        return self.num_prompt_tokens + max(self.max_new_tokens - 1, 0)

    @property
    def is_exhausted(self) -> bool:
        """The prompt is computed and the answer is as long as it may become."""
        num_prompt_tokens = self.num_prompt_tokens
        is_read = self.num_computed_tokens >= num_prompt_tokens
        return is_read and len(self.token_ids) - num_prompt_tokens >= self.max_new_tokens
