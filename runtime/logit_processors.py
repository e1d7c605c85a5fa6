"""The one seam between the model's logits and the draw: what may change a row before it is sampled.

A row is f32 [V], V being every row of the head, and is changed in place. Processors run in the order in which
`LogitChain` lists them: what must not be drawn, biases, then penalties (on biased logits, as in vLLM). Temperature and
filters come after, in `sampler`. Logprobs are taken before all of this.

Where everything is an addition (`Adjustments`), the best few ids can be chosen without the row; a repetition penalty needs it.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .sampling_params import SamplingParams

Row = npt.NDArray[np.float32]

NEVER = np.float32(-np.inf)


class LogitProcessor(Protocol):
    """Changes one sequence's row in place. `generated` has its generated ids so far."""

    def apply(self, logits: Row, generated: Sequence[int]) -> None: ...


class Adjustments:
    """Whatever is added to single logits, as one f32 number an id:

        bias                                        of an id that the request names
        - frequency * count - presence              of an id that was generated `count` times
        -inf                                        of an id that may not come: stop ids before `min_tokens`

    The ids are kept beside their numbers, and a step touches only what the ids drawn since the last one change.
    """

    def __init__(
        self, params: SamplingParams, *, stop_ids: Collection[int] = (), min_tokens: int = 0, has_penalties: bool = True
    ) -> None:
        self._bias = params.logit_bias
        self._presence = params.presence_penalty if has_penalties else 0.0
        self._frequency = params.frequency_penalty if has_penalties else 0.0
        self._has_penalties = bool(self._presence or self._frequency)
        self._min_tokens = min_tokens if stop_ids else 0
        self._banned = frozenset(stop_ids) if self._min_tokens else frozenset()
        self._counts: dict[int, int] = {}
        self._num_read = 0
        first = sorted({*self._bias, *self._banned})
        self._place = {token_id: place for place, token_id in enumerate(first)}
        self._ids = array("i", first)
        self._values = array("f", [self._value(token_id) for token_id in first])

    @property
    def is_empty(self) -> bool:
        """Nothing is added now, and nothing will be."""
        return not self._place and not self._has_penalties

    def read(self, generated: Sequence[int]) -> tuple[array[int], array[float]]:
        """Distinct ids (int32) and what is added to each (f32), once `generated` has these ids. They change with the next call, and
        nothing may look into them by then."""
        if self._banned and len(generated) >= self._min_tokens:
            banned, self._banned = self._banned, frozenset()
            for token_id in banned:
                self._values[self._place[token_id]] = self._value(token_id)
        if self._has_penalties:
            for token_id in generated[self._num_read :]:
                self._count(token_id)
            self._num_read = len(generated)
        return self._ids, self._values

    def apply(self, logits: Row, generated: Sequence[int]) -> None:
        """A LogitProcessor."""
        ids, values = self.read(generated)
        logits[np.frombuffer(ids, dtype=np.int32)] += np.frombuffer(values, dtype=np.float32)

    def _count(self, token_id: int) -> None:
        self._counts[token_id] = self._counts.get(token_id, 0) + 1
        place = self._place.setdefault(token_id, len(self._place))
        if place == len(self._ids):
            self._ids.append(token_id)
            self._values.append(self._value(token_id))
        else:
            self._values[place] = self._value(token_id)

    def _value(self, token_id: int) -> float:
        if token_id in self._banned:
            return -math.inf
        value = self._bias.get(token_id, 0.0)
        count = self._counts.get(token_id, 0)
        return value - self._frequency * count - self._presence if count else value


class VocabMask:
    """Rows of the head beyond the tokenizer have no token: never drawn."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def apply(self, logits: Row, generated: Sequence[int]) -> None:
        logits[self._vocab_size :] = NEVER


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


@dataclass(frozen=True, slots=True)
class LogitChain:
    """What one answer's rows go through, in order."""

    mask: VocabMask
    adjustments: Adjustments
    penalties: Penalties | None
    """Only where repetition is penalised; the others are adjustments."""

    @property
    def is_additive(self) -> bool:
        """The adjustments are all that there is, beside the mask."""
        return self.penalties is None

    @property
    def processors(self) -> list[LogitProcessor]:
        """Those that do something."""
        chain: list[LogitProcessor] = [self.mask]
        if not self.adjustments.is_empty:
            chain.append(self.adjustments)
        if self.penalties is not None:
            chain.append(self.penalties)
        return chain


def logit_chain(
    params: SamplingParams, *, vocab_size: int, prompt_ids: Sequence[int], stop_ids: Collection[int], min_tokens: int
) -> LogitChain:
    """Of one answer of a request."""
    repeats = params.repetition_penalty != 1.0
    return LogitChain(
        mask=VocabMask(vocab_size),
        adjustments=Adjustments(params, stop_ids=stop_ids, min_tokens=min_tokens, has_penalties=not repeats),
        penalties=Penalties(params, prompt_ids) if repeats else None,
    )
