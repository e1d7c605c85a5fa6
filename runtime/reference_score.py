"""What `shoal model score` writes, by the reference back end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from torch import Tensor

from .batch import Batch, Row
from .cache import HybridCache
from .model import HybridModel


def score_pieces(
    model: HybridModel, cache: HybridCache, ids: Sequence[int], points: Sequence[int]
) -> Iterator[tuple[str, memoryview]]:
    """Run `ids` piece by piece (points from `score.cut_points`) in slot 0, yielding logits as they come, then the states."""
    blocks = tuple(range(cache.num_blocks))
    for begin, end in itertools.pairwise(points):
        row = Row(end - begin, begin, blocks, slot=0)
        batch = Batch(list(ids[begin:end]), [row], list(range(end - begin)))
        yield "logits", _raw(model.forward(batch, cache))
    config = model.config
    for i in range(config.num_layers):
        if i in config.attention_layers:
            for name, pool in (("k", cache.keys[i]), ("v", cache.values[i])):
                yield f"{name}.{i}", _raw(pool.flatten(0, 1)[: len(ids)])
        else:
            if config.linear_conv_kernel_dim > 1:
                yield f"conv.{i}", _raw(cache.columns[i][0])
            yield f"state.{i}", _raw(cache.states[i][0])


def _raw(tensor: Tensor) -> memoryview:
    """Bytes of a tensor as f32, row-major."""
    return tensor.float().contiguous().numpy().data.cast("B")
