"""What sequences leave behind between steps: paged keys and values, recurrent states, convolution columns.

The layouts are fixed here and nowhere else:

keys, values   a tensor an attention layer, [num_blocks, block_tokens, kv heads, head_dim]; keys after norm and rotation
states         a tensor a DeltaNet layer, [num_slots, value heads, key head_dim, value head_dim] f32
columns        a tensor a DeltaNet layer, [num_slots, channels, taps - 1], raw (before the convolution), oldest first
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import AllocationFailed
from .model_config import ModelConfig
from .plan import MemoryPlan

TORCH_DTYPES: Mapping[str, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class HybridCache:
    """Tensors by layer index of the trunk. Blocks and slots are handed out by others; nothing here counts them."""

    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]
    states: Mapping[int, Tensor]
    columns: Mapping[int, Tensor]
    num_blocks: int
    block_tokens: int
    num_slots: int

    @classmethod
    def allocate(
        cls, config: ModelConfig, plan: MemoryPlan, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> HybridCache:
        """All pools of the plan, zeroed. `dtype` is that of the activations (default: the plan's); KV follow the plan's format.

        Raises AllocationFailed.
        """
        activations = TORCH_DTYPES[plan.dtype] if dtype is None else dtype
        paged = (plan.num_blocks, plan.block_tokens, config.num_key_value_heads, config.head_dim)
        state = (
            plan.num_slots,
            config.linear_num_value_heads,
            config.linear_key_head_dim,
            config.linear_value_head_dim,
        )
        column = (plan.num_slots, config.conv_dim, config.linear_conv_kernel_dim - 1)
        kv = TORCH_DTYPES[plan.kv_format]

        def pool(layers: tuple[int, ...], shape: tuple[int, ...], of: torch.dtype) -> dict[int, Tensor]:
            return {i: torch.zeros(shape, dtype=of, device=device) for i in layers}

        try:
            keys, values = (pool(config.attention_layers, paged, kv) for _ in range(2))
            states = pool(config.linear_layers, state, torch.float32)
            columns = pool(config.linear_layers, column, activations)
        except RuntimeError as error:  # what torch raises where memory is refused
            raise AllocationFailed(f"no memory for the cache of {plan.kv + plan.state + plan.conv:,} bytes") from error
        return cls(
            keys=keys,
            values=values,
            states=states,
            columns=columns,
            num_blocks=plan.num_blocks,
            block_tokens=plan.block_tokens,
            num_slots=plan.num_slots,
        )

    @property
    def nbytes(self) -> dict[str, int]:
        """Allocated bytes by pool, named as in MemoryPlan."""

        def count(*pools: Mapping[int, Tensor]) -> int:
            return sum(tensor.nbytes for pool in pools for tensor in pool.values())

        return {"kv": count(self.keys, self.values), "state": count(self.states), "conv": count(self.columns)}

    def copy_slot(self, source: int, target: int) -> None:
        """Make `target` hold the states and columns of `source` (a snapshot, or the start from one)."""
        for pool in (self.states, self.columns):
            for tensor in pool.values():
                tensor[target].copy_(tensor[source])

    def clear_slot(self, slot: int) -> None:
        """Zero a slot. A row with `start` 0 needs no such call."""
        for pool in (self.states, self.columns):
            for tensor in pool.values():
                tensor[slot].zero_()

    def copy_block(self, source: int, target: int) -> None:
        """Copy the keys and values of one block in every attention layer."""
        for pool in (self.keys, self.values):
            for tensor in pool.values():
                tensor[target].copy_(tensor[source])
