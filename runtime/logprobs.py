"""Natural logarithms of the model's own distribution: f32 softmax over every row of the head, before anything changes it.

numpy only. Rows are f32 [V]; nothing here writes into a row that it was given.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .logit_processors import Row
from .sampler import largest
from .wire import TokenLogprob, TopLogprob

TokenBytes = Callable[[int], bytes]


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[..., V] f32 -> the same shape: l - l_max - ln sum exp(l - l_max)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float32)
    result: npt.NDArray[np.float32] = shifted - np.log(total)
    return result


def token_logprob(scores: Row, token_id: int, num_top: int, token_bytes: TokenBytes) -> TokenLogprob:
    """The entry of `token_id` under `scores` (the log-softmax), with the `num_top` likeliest, equal ones by id."""
    top = [TopLogprob(int(other), float(scores[other]), token_bytes(int(other))) for other in largest(scores, num_top)]
    return TokenLogprob(token_id, float(scores[token_id]), token_bytes(token_id), top)


def first_logprob(token_id: int, token_bytes: TokenBytes) -> TokenLogprob:
    """The entry of the first token of a prompt, which nothing precedes."""
    return TokenLogprob(token_id, None, token_bytes(token_id))
