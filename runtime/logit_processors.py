"""The one seam between the model's logits and the draw: what may change a row before it is sampled.

A row is f32 [V], V being every row of the head, and is changed in place. Processors run in the order in which
`processors_for` lists them: what must not be drawn, biases, then penalties (on biased logits, as in vLLM). Temperature and
filters come after, in `sampler`. Logprobs are taken before all of this.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .sampling_params import SamplingParams

Row = npt.NDArray[np.float32]

NEVER = np.float32(-np.inf)


class LogitProcessor(Protocol):
    """Changes one sequence's row in place. `generated` has its generated ids so far."""

    def apply(self, logits: Row, generated: Sequence[int]) -> None: ...


class VocabMask:
    """Rows of the head beyond the tokenizer have no token: never drawn."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def apply(self, logits: Row, generated: Sequence[int]) -> None:
        logits[self._vocab_size :] = NEVER


class MinTokensMask:
    """Ids that end an answer are not drawn before `min_tokens` ids."""

    def __init__(self, min_tokens: int, stop_ids: Collection[int]) -> None:
        self._min_tokens = min_tokens
        self._stop_ids = np.array(sorted(stop_ids), dtype=np.intp)

    def apply(self, logits: Row, generated: Sequence[int]) -> None:
        if len(generated) < self._min_tokens:
            logits[self._stop_ids] = NEVER


class LogitBias:
    """A constant added to the logits of the ids that the request names."""

    def __init__(self, bias: dict[int, float]) -> None:
        self._ids = np.array(list(bias.keys()), dtype=np.intp)
        self._values = np.array(list(bias.values()), dtype=np.float32)

    def apply(self, logits: Row, generated: Sequence[int]) -> None:
        logits[self._ids] += self._values


class Penalties:
    """Repetition over prompt and output; frequency and presence over generated ids only.

        l > 0: l / repetition, else l * repetition            for ids in prompt or output
        l - frequency * count - presence * [count > 0]        count = times generated

    Keeps the ids that it has met beside their counts and reads only the new ones at each call, so a step costs what there
    are distinct ids, not the length of the answer.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int]) -> None:
        self._repetition = np.float32(params.repetition_penalty)
        self._presence = np.float32(params.presence_penalty)
        self._frequency = np.float32(params.frequency_penalty)
        prompt = sorted(set(prompt_ids)) if params.repetition_penalty != 1.0 else []
        self._place = {token_id: place for place, token_id in enumerate(prompt)}
        self._ids = np.array(prompt, dtype=np.intp)
        self._counts = np.zeros(len(prompt), dtype=np.float32)
        self._num_distinct = len(prompt)
        self._num_read = 0

    def apply(self, logits: Row, generated: Sequence[int]) -> None:
        for token_id in generated[self._num_read :]:
            self._read(token_id)
        self._num_read = len(generated)
        ids, counts = self._ids[: self._num_distinct], self._counts[: self._num_distinct]
        values = logits[ids]
        if self._repetition != 1.0:
            values = np.where(values > 0, values / self._repetition, values * self._repetition)
        logits[ids] = values - self._frequency * counts - self._presence * (counts > 0)

    def _read(self, token_id: int) -> None:
        place = self._place.setdefault(token_id, self._num_distinct)
        if place == self._num_distinct:
            if place == len(self._ids):
                grown = max(2 * place, 64)
                self._ids = np.resize(self._ids, grown) if place else np.zeros(grown, dtype=np.intp)
                self._counts = np.concatenate([self._counts, np.zeros(grown - place, dtype=np.float32)])
            self._ids[place] = token_id
            self._counts[place] = 0
            self._num_distinct += 1
        self._counts[place] += 1


def processors_for(
    params: SamplingParams, *, vocab_size: int, prompt_ids: Sequence[int], stop_ids: Collection[int], min_tokens: int
) -> list[LogitProcessor]:
    """Those that a request needs, in order."""
    chain: list[LogitProcessor] = [VocabMask(vocab_size)]
    if params.logit_bias:
        chain.append(LogitBias(params.logit_bias))
    if min_tokens > 0 and stop_ids:
        chain.append(MinTokensMask(min_tokens, stop_ids))
    if params.has_penalties:
        chain.append(Penalties(params, prompt_ids))
    return chain
