"""Rotary position parameters of a config: partial rotation, interleaved sections, static YaRN. No torch, no numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import Unsupported
from .mapping_reader import MappingReader

DEFAULT_SECTIONS = (11, 11, 10)
DEFAULT_THETA = 10_000.0
DEFAULT_PARTIAL = 0.25


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """`rotary_dim` leading dims of a head are rotated, as NeoX pairs (j, j + rotary_dim / 2)."""

    theta: float
    rotary_dim: int
    sections: tuple[int, int, int]
    """Frequencies whose angle comes from the time, height and width position, interleaved: see `axes`."""
    yarn: YarnConfig | None = None

    @property
    def axes(self) -> tuple[int, ...]:
        """Which position axis (0 time, 1 height, 2 width) turns each frequency j, [rotary_dim / 2]."""
        _, height, width = self.sections
        return tuple(
            1 if j % 3 == 1 and j < 3 * height else 2 if j % 3 == 2 and j < 3 * width else 0
            for j in range(self.rotary_dim // 2)
        )

    @property
    def inverse_frequencies(self) -> tuple[float, ...]:
        """Radians a position for each frequency, theta^(-2j / rotary_dim), stretched by YaRN where configured."""
        plain = [self.theta ** (-2 * j / self.rotary_dim) for j in range(self.rotary_dim // 2)]
        return tuple(plain if self.yarn is None else self.yarn.stretch(plain, self.theta, self.rotary_dim))

    @property
    def amplitude(self) -> float:
        """Factor on cos and sin: 1 but for YaRN."""
        return 1.0 if self.yarn is None else self.yarn.attention_factor


@dataclass(frozen=True, slots=True)
class YarnConfig:
    """Static YaRN (arXiv 2309.00071): low frequencies are divided by `factor`, high ones kept, a ramp between."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool

    def stretch(self, plain: list[float], theta: float, rotary_dim: int) -> list[float]:
        """Inverse frequencies after the ramp, as many as `plain`."""

        def dim_of(num_rotations: float) -> float:
            turns = self.original_max_position_embeddings / (num_rotations * 2 * math.pi)
            return rotary_dim * math.log(turns) / (2 * math.log(theta))

        low, high = dim_of(self.beta_fast), dim_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary_dim - 1)
        if low == high:
            high += 0.001
        ramps = [min(max((j - low) / (high - low), 0.0), 1.0) for j in range(len(plain))]
        return [f * (1 - ramp) + f / self.factor * ramp for f, ramp in zip(plain, ramps, strict=True)]


def read_rope(text: MappingReader, head_dim: int) -> RopeConfig:
    """`rope_parameters`, or the older `rope_theta`, `rope_scaling`, `partial_rotary_factor` beside the sizes.

    Raises ConfigInvalid or Unsupported.
    """
    older = text.object("rope_scaling")
    rope = text.object("rope_parameters") or older
    outer_theta = text.number("rope_theta", DEFAULT_THETA)
    outer_partial = text.number("partial_rotary_factor", DEFAULT_PARTIAL)
    theta, partial, sections, yarn = outer_theta, outer_partial, DEFAULT_SECTIONS, None
    if rope is not None:
        theta = rope.number("rope_theta", outer_theta, above=1.0)
        partial = rope.number("partial_rotary_factor", outer_partial)
        given = rope.integers("mrope_section", DEFAULT_SECTIONS)
        if len(given) != 3:
            raise rope.fail("mrope_section", f"must have three entries, not {len(given)}")
        sections = (given[0], given[1], given[2])
        kind = rope.string("rope_type", rope.string("type", "default"))
        if kind == "yarn":
            yarn = read_yarn(rope, text)
        elif kind not in ("default", "mrope"):
            raise Unsupported(f"rope_type {kind!r} is not served; 'default' and 'yarn' are", file="config.json")
        if not rope.boolean("mrope_interleaved", True):
            raise rope.fail("mrope_interleaved", "must be true: sections in contiguous blocks are another model")
    if partial > 1:
        raise text.fail("partial_rotary_factor", f"must lie in (0, 1], not {partial}")
    rotary_dim = int(head_dim * partial)
    if rotary_dim < 2 or rotary_dim % 2:
        raise text.fail("head_dim", f"times partial_rotary_factor must be an even number of dims, not {rotary_dim}")
    return RopeConfig(theta=theta, rotary_dim=rotary_dim, sections=sections, yarn=yarn)


def read_yarn(rope: MappingReader, text: MappingReader) -> YarnConfig:
    """The keys of `rope_type` "yarn". Raises ConfigInvalid."""
    factor = rope.number("factor", above=0.0)
    if factor < 1:
        raise rope.fail("factor", f"must be at least 1, not {factor}")
    return YarnConfig(
        factor=factor,
        original_max_position_embeddings=rope.integer(
            "original_max_position_embeddings", text.integer("max_position_embeddings", 32768)
        ),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        attention_factor=rope.number("attention_factor", 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0),
        truncate=rope.boolean("truncate", True),
    )
