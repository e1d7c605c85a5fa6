"""What a computed step brings to the sequences in it. numpy only, so that deciding and drawing need no torch.

Structs, since they are made anew in every step: a frozen dataclass calls the interpreter once a field.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt


class CandidatesWanted(msgspec.Struct, frozen=True, gc=False):
    """Says of a row that draws that so many best ids are enough for it, and what is added to logits before they are chosen."""

    count: int
    ids: array[int] | None = None
    """int32, distinct; None where nothing is added."""
    values: array[float] | None = None
    """f32; -inf bans an id."""


class Candidates(msgspec.Struct, frozen=True, gc=False):
    """The best ids of a row after the adjustment, by logit, largest first, equal ones by id. Fewer than wanted only where there
    are no more."""

    ids: list[int]
    logits: list[float]
    """Adjusted, each exactly an f32: what the same ids have in the adjusted whole row."""


class RowLogits(msgspec.Struct, frozen=True, gc=False):
    """What a scheduled row brought. Arrays belong to the caller, who may write into them, until the next step."""

    scored: npt.NDArray[np.float32]
    """[len(scored_range), V]: each scores the prompt token after its position."""
    last: npt.NDArray[np.float32] | Candidates | None
    """[V], or the candidates where they were said to be enough: from which the next id is drawn. None where the row draws none."""


class StepResult(msgspec.Struct, frozen=True, gc=False):
    """Rows as in the plan, and the seconds that the model took."""

    rows: Sequence[RowLogits]
    forward_s: float
