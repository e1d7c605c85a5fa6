"""What `shoal model score` writes, by the native back end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from shoal.kernels.cpu.engine import Engine

from .model_config import ModelConfig


def score_pieces(
    engine: Engine, config: ModelConfig, ids: Sequence[int], points: Sequence[int]
) -> Iterator[tuple[str, memoryview]]:
    """Run `ids` piece by piece (points from `score.cut_points`) in slot 0, yielding logits as they come, then the states."""
    pages = np.arange(engine.sizes.num_pages, dtype=np.int32)
    for begin, end in itertools.pairwise(points):
        count = end - begin
        yield "logits", _raw(engine.logits(list(ids[begin:end]), [count, begin, 0, 0], pages, list(range(count))))
    for i in range(config.num_layers):
        if i in config.attention_layers:
            yield f"k.{i}", _raw(engine.read_keys(i, pages, len(ids)))
            yield f"v.{i}", _raw(engine.read_values(i, pages, len(ids)))
        else:
            yield f"conv.{i}", _raw(engine.read_columns(i, 0))
            yield f"state.{i}", _raw(engine.read_state(i, 0, len(ids)))


def _raw(values: npt.NDArray[np.float32]) -> memoryview:
    """Bytes of an array, row-major."""
    return np.ascontiguousarray(values, dtype=np.float32).data.cast("B")
