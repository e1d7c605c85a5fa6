"""The feed-forward of a layer: dense, or sparse with a shared expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from shoal.kernels import ops

from ..model_config import MoeConfig


@dataclass(frozen=True, slots=True)
class DenseFeedForward:
    """Weights [out, in]."""

    gate_proj: Tensor
    up_proj: Tensor
    down_proj: Tensor

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], prefix: str) -> DenseFeedForward:
        """From the trunk's tensors; `prefix` ends before `gate_proj`."""
        return cls(**{name: weights[f"{prefix}{name}.weight"] for name in ("gate_proj", "up_proj", "down_proj")})

    def forward(self, x: Tensor, tiles: Sequence[slice]) -> Tensor:
        """x [N, H] -> [N, H]."""
        return ops.swiglu(x, self.gate_proj, self.up_proj, self.down_proj, tiles)


@dataclass(frozen=True, slots=True)
class SparseFeedForward:
    """`gate_up` [E, 2I, H] and `down` [E, H, I] hold all experts; `shared` serves every token through its own gate [1, H]."""

    router: Tensor
    gate_up: Tensor
    down: Tensor
    shared: DenseFeedForward
    shared_gate: Tensor
    num_per_token: int

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], prefix: str, moe: MoeConfig) -> SparseFeedForward:
        """From the trunk's tensors; `prefix` ends before `gate.weight`."""
        return cls(
            router=weights[f"{prefix}gate.weight"],
            gate_up=weights[f"{prefix}experts.gate_up_proj"],
            down=weights[f"{prefix}experts.down_proj"],
            shared=DenseFeedForward.of(weights, f"{prefix}shared_expert."),
            shared_gate=weights[f"{prefix}shared_expert_gate.weight"],
            num_per_token=moe.num_per_token,
        )

    def forward(self, x: Tensor, tiles: Sequence[slice]) -> Tensor:
        """x [N, H] -> [N, H]."""
        routed = ops.sparse_swiglu(x, self.router, self.gate_up, self.down, self.num_per_token, tiles)
        return routed + ops.tiled_linear(x, self.shared_gate, tiles).sigmoid() * self.shared.forward(x, tiles)
