"""Random tensor values that behave: finite logits of a few units, states that neither vanish nor explode.

Values are drawn by inverse distribution: 16 random bits pick one of 65,536 quantiles of the normal distribution. That is several times
faster than a normal generator and loses nothing that bf16 could hold. A tensor's values depend on the seed and its name only.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from .tensors import TensorSpec

PIECE_ELEMENTS = 4 * 1024 * 1024
"""Elements drawn at once."""
LOGIT_SCALE = 2.0
"""Standard deviation of logits: enough for a distribution with favourites, not so much that one always wins."""
DECAY_RATES = (1.0, 16.0)
"""exp(A_log) is uniform in these."""
TIME_STEPS = (0.001, 0.1)
"""softplus(dt_bias) is log-uniform in these: heads that remember for tens to thousands of tokens."""

_NORMAL = statistics.NormalDist()


def normal_quantiles() -> NDArray[np.float32]:
    """65,536 quantiles of the standard normal distribution, at the middles of equal shares."""
    return np.array([_NORMAL.inv_cdf((i + 0.5) / 65536) for i in range(65536)], dtype=np.float32)


def bf16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite f32 to the nearest bf16, ties to even; the upper halves of the results' bits."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def distribution(name: str, spec: TensorSpec) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """What to make of standard normal quantiles for the tensor of this full name."""
    leaf = name.removesuffix(".weight").rpartition(".")[2]
    if leaf == "A_log":
        return lambda z: np.log(_between(z, *DECAY_RATES))
    if leaf == "dt_bias":
        low, high = (math.log(math.expm1(step)) for step in TIME_STEPS)
        return lambda z: _between(z, low, high)
    if name.endswith("linear_attn.norm.weight") or (name.startswith("model.visual.") and "norm" in leaf):
        return lambda z: 1.0 + 0.1 * z
    if len(spec.shape) == 1:  # norms that add one, biases
        return lambda z: 0.1 * z
    if leaf == "conv1d":
        return lambda z: z / math.sqrt(spec.shape[-1])
    if leaf in ("embed_tokens", "lm_head"):
        return lambda z: z * (LOGIT_SCALE / math.sqrt(spec.shape[-1]))
    fan_in = math.prod(spec.shape[1:]) if len(spec.shape) != 3 else spec.shape[-1]  # three dims: one matrix an expert
    return lambda z: z / math.sqrt(fan_in)


def _between(z: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Uniform in (low, high), from standard normal z."""
    share = np.array([_NORMAL.cdf(float(each)) for each in z], dtype=np.float32)
    return (low + (high - low) * share).astype(np.float32)


class ValueSource:
    """Draws the values of tensors, each from its own stream."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._quantiles = normal_quantiles()

    def pieces(self, name: str, spec: TensorSpec) -> Iterator[memoryview]:
        """Little-endian bytes of one tensor in its published dtype, a piece at a time."""
        # SFC64: the fastest of numpy's generators with a large state; nothing here needs more.
        bits = np.random.Generator(np.random.SFC64(np.random.SeedSequence([self._seed, zlib.crc32(name.encode())])))
        shape_it = distribution(name, spec)
        table: NDArray[np.uint16] | NDArray[np.float32] | None = None
        if spec.num_elements > len(self._quantiles):
            table = _encode(shape_it(self._quantiles), spec.dtype)
        for begin in range(0, spec.num_elements, PIECE_ELEMENTS):
            count = min(PIECE_ELEMENTS, spec.num_elements - begin)
            # Raw 64-bit words cut in four: on a big-endian machine other values, not worse ones.
            choice = bits.bit_generator.random_raw(-(-count // 4)).view(np.uint16)[:count]
            values = table.take(choice) if table is not None else _encode(shape_it(self._quantiles[choice]), spec.dtype)
            yield values.data.cast("B")


def _encode(values: NDArray[np.float32], dtype: str) -> NDArray[np.uint16] | NDArray[np.float32]:
    return bf16_bits(values.astype(np.float32)) if dtype == "BF16" else values.astype("<f4")
