"""What a computed step brings to the sequences in it. numpy only, so that deciding and drawing need no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class RowLogits:
    """What a scheduled row brought. Arrays belong to the caller, who may write into them."""

    scored: npt.NDArray[np.float32]
    """[len(scored_range), V]: each scores the prompt token after its position."""
    last: npt.NDArray[np.float32] | None
    """[V], from which the next id is drawn; None where the row draws none."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Rows as in the plan, and the seconds that the model took."""

    rows: Sequence[RowLogits]
    forward_s: float
