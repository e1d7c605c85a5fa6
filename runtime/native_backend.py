"""The native back end, loaded: converted weights mapped, the pools of kernels/cpu allocated. No torch.

Nor numpy before the weights are mapped: while they are, another thread may import it.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from shoal import __version__
from shoal.kernels.cpu import UnsupportedIsa, module_path
from shoal.kernels.cpu import engine_shape as native
from shoal.kernels.cpu.engine_shape import ATTENTION, DELTA, EngineShape, EngineSizes, WeightTensor

from . import native_plan
from .block_manager import BlockManager
from .container import Container, ContainerTensor
from .cores import choose_threads, processors_for
from .digest import hash_file
from .errors import AllocationFailed, CheckpointCorrupt, OptionInvalid, UnsupportedShape
from .model_config import FULL_ATTENTION, ModelConfig
from .native_weights import ServedWeights
from .options import EngineOptions
from .plan import MemoryPlan
from .sizes import num_parameters

if TYPE_CHECKING:
    from shoal.kernels.cpu.engine import Engine

    from .native_runner import NativeRunner


def engine_shape(config: ModelConfig) -> EngineShape:
    """The sizes as the kernels name them."""
    rope = config.rope
    return EngineShape(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        layers=tuple(ATTENTION if kind == FULL_ATTENTION else DELTA for kind in config.layer_types),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        key_heads=config.linear_num_key_heads,
        value_heads=config.linear_num_value_heads,
        key_dim=config.linear_key_head_dim,
        value_dim=config.linear_value_head_dim,
        eps=config.rms_norm_eps,
        inverse_frequencies=rope.inverse_frequencies,
        rotary_axes=rope.axes,
        rotary_amplitude=rope.amplitude,
        tied_head=config.tie_word_embeddings,
        num_taps=config.linear_conv_kernel_dim,
        num_experts=0 if config.moe is None else config.moe.num_experts,
    )


def engine_sizes(options: EngineOptions, plan: MemoryPlan, num_drawable: int | None) -> EngineSizes:
    """What the plan's pools hold. `num_drawable`: ids that the tokenizer knows."""
    threads = choose_threads(options.threads, plan.weights)
    return EngineSizes(
        num_pages=plan.num_blocks,
        num_slots=plan.num_slots,
        max_tokens=plan.max_batched_tokens,
        max_rows=options.parallel,
        max_full_rows=native_plan.max_full_rows(options),
        kv_format=plan.kv_format,
        threads=threads,
        cpus=processors_for(threads),
        isa=options.isa,
        drawable_vocab_size=num_drawable,
    )


def open_engine(container: Container, shape: EngineShape, sizes: EngineSizes) -> Engine:
    """Map and allocate. Raises UnsupportedShape, OptionInvalid, CheckpointCorrupt, AllocationFailed."""
    tensors = [_located(name, tensor) for name, tensor in container.tensors.items()]
    try:
        opened = native.open_engine(shape, sizes, container.path, tensors)
    except UnsupportedIsa as error:
        raise OptionInvalid("isa", str(error)) from error
    except native.UnsupportedShape as error:
        raise UnsupportedShape(str(error), file="config.json") from error
    except MemoryError as error:
        raise AllocationFailed("no memory for the caches and buffers of the native engine") from error
    except ValueError as error:
        raise CheckpointCorrupt(str(error), file=container.path.name) from error
    except OSError as error:
        raise CheckpointCorrupt(f"cannot be mapped: {error.strerror}", file=container.path.name) from error
    from shoal.kernels.cpu.engine import Engine

    return Engine.around(shape, sizes, opened)


def _located(name: str, tensor: ContainerTensor) -> WeightTensor:
    """A vector is one row in the file, and one column to the engine."""
    rows, cols = (tensor.cols, 1) if tensor.layout == "f32" and tensor.rows == 1 else (tensor.rows, tensor.cols)
    return WeightTensor(name, tensor.layout, rows, cols, tensor.offset, tensor.num_bytes)


@dataclass(frozen=True)
class NativeBackend:
    """A model on its threads, with the states and pages of its sequences."""

    plan: MemoryPlan
    options: EngineOptions
    engine: Engine
    weights: ServedWeights
    num_parameters: int

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        options: EngineOptions,
        plan: MemoryPlan,
        weights: ServedWeights,
        num_drawable: int | None,
    ) -> NativeBackend:
        """Raises ModelLoadError, OptionInvalid."""
        engine = open_engine(weights.container, engine_shape(config), engine_sizes(options, plan, num_drawable))
        return cls(plan, options, engine, weights, num_parameters(config))

    @property
    def isa(self) -> str:
        """Of the kernels that run."""
        return self.engine.isa

    @property
    def threads(self) -> int:
        """Of a step."""
        return self.engine.sizes.threads

    @property
    def allocated_bytes(self) -> dict[str, int]:
        """By the names of the plan's pools."""
        pools = dict(self.engine.pool_bytes)
        return pools | {
            "activations": pools["activations"] + native_plan.logits_bytes(self.engine.shape.vocab_size, self.options)
        }

    @property
    def skipped(self) -> Mapping[str, int]:
        """The converter left out what is not served."""
        return {}

    @property
    def source_digest(self) -> str | None:
        """Of the published files that the weights were converted from."""
        return self.weights.container.source_digest

    @property
    def weight_digests(self) -> Mapping[str, str] | None:
        """The file's table of layouts, which has the digest of each tensor: nothing has to be read for it."""
        layout = self.weights.container.metadata["layout"]
        return {self.weights.container.path.name: hashlib.sha256(layout.encode()).hexdigest()}

    @property
    def cut_tokens(self) -> int:
        """No cut changes a bit."""
        return 1

    @property
    def max_scored_tokens(self) -> int:
        """Prompt tokens of a step whose logits may be wanted."""
        return native_plan.MAX_SCORED_TOKENS

    @property
    def max_scored_piece(self) -> int:
        """As many rows as there is room for."""
        return self.engine.sizes.max_full_rows

    @cached_property
    def determinism_class(self) -> str:
        """Build, and the instruction set only where products are not exact: int8 and int4 give the same bits on all of them."""
        build = hash_file(module_path())[:12]
        machine = platform.machine() if self.plan.format != "bf16" else f"{platform.machine()}-{self.engine.isa}"
        return f"shoal-{__version__}/cpu-{build}/{machine}"

    def make_present(self) -> None:
        """LoadedBackend.make_present."""
        self.engine.make_present()

    def runner(self, blocks: BlockManager, clock: Callable[[], float]) -> NativeRunner:
        """What computes the steps over these books."""
        from .native_runner import NativeRunner

        return NativeRunner(self.engine, blocks, clock)

    def score(self, config: ModelConfig, ids: Sequence[int], points: Sequence[int]) -> Iterator[tuple[str, memoryview]]:
        """LoadedBackend.score."""
        from .native_score import score_pieces

        return score_pieces(self.engine, config, ids, points)
