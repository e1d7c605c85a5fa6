"""What a computed step brings to the sequences in it. numpy only, so that deciding and drawing need no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class CandidatesWanted:
    """Says of a row that draws that so many best ids are enough for it, and what is added to logits before they are chosen."""

    count: int
    ids: npt.NDArray[np.int32]
    """Distinct."""
    values: npt.NDArray[np.float32]
    """-inf bans an id."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The best ids of a row after the adjustment, by logit, largest first, equal ones by id. Fewer than wanted only where there
    are no more."""

    ids: npt.NDArray[np.int32]
    logits: npt.NDArray[np.float32]
    """Adjusted: exactly what the same ids have in the adjusted whole row."""


@dataclass(frozen=True, slots=True)
class RowLogits:
    """What a scheduled row brought. Arrays belong to the caller, who may write into them, until the next step."""

    scored: npt.NDArray[np.float32]
    """[len(scored_range), V]: each scores the prompt token after its position."""
    last: npt.NDArray[np.float32] | Candidates | None
    """[V], or the candidates where they were said to be enough: from which the next id is drawn. None where the row draws none."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Rows as in the plan, and the seconds that the model took."""

    rows: Sequence[RowLogits]
    forward_s: float
