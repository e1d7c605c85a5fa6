"""The plan's bytes against the native allocator's own arithmetic, for every published shape that it serves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal.kernels.cpu import engine as native
from shoal.runtime import native_plan
from shoal.runtime.backends import LANES, TAPS, choose_backend
from shoal.runtime.config import EngineOptions, ModelConfig
from shoal.runtime.native_backend import engine_shape, engine_sizes
from shoal.runtime.plan import plan_memory
from shoal.runtime.sizes import published_config

SMALL = ModelConfig.from_mapping(published_config("0.8B"))


def agree(config: ModelConfig, options: EngineOptions) -> None:
    plan = plan_memory(config, options)
    sizes = engine_sizes(options, plan, None)
    theirs = dict(native.pool_bytes(engine_shape(config), sizes, plan.format))
    theirs["activations"] += native_plan.logits_bytes(config.vocab_size, options)
    assert theirs == {name: size for name, size in plan.by_pool().items() if name not in ("host", "conv")}


@pytest.mark.parametrize("size", ["0.8B", "2B", "4B", "9B", "27B"])
@pytest.mark.parametrize("format_", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("context", [4096, 32768])
def test_published_sizes(size: str, format_: str, context: int) -> None:
    config = ModelConfig.from_mapping(published_config(size))
    for kv_format, parallel, threads in (("bf16", 1, 1), ("int8", 16, 2), ("f32", 3, 1)):
        options = EngineOptions(
            format=format_, context=context, kv_format=kv_format, parallel=parallel, threads=threads
        )
        agree(config, options)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 80, "intermediate_size": 1000, "vocab_size": 300},
        {"layer_types": ("linear_attention",) * 3},
        {"layer_types": ("full_attention",) * 2, "tie_word_embeddings": False},
        {"head_dim": 64, "linear_key_head_dim": 16, "linear_value_head_dim": 48},
    ],
    ids=["odd", "only DeltaNet", "only attention", "other heads"],
)
@pytest.mark.parametrize("max_batched_tokens", [3, 500])
def test_odd_shapes(change: dict[str, object], max_batched_tokens: int) -> None:
    config = replace(SMALL, **change)  # type: ignore[arg-type]
    agree(config, EngineOptions(context=500, parallel=3, max_batched_tokens=max_batched_tokens, threads=3))


@pytest.mark.parametrize(
    "change",
    [
        {"linear_conv_kernel_dim": TAPS + 1},
        {"linear_key_head_dim": LANES + 1},
        {"linear_value_head_dim": LANES // 2},
        {"head_dim": LANES + 4},
    ],
)
def test_the_kernels_refuse_what_the_choice_refuses(change: dict[str, int]) -> None:
    config = replace(SMALL, **change)  # type: ignore[arg-type]
    assert not choose_backend(config, EngineOptions(), has_torch=True).is_native
    with pytest.raises(native.UnsupportedShape):
        native.check_shape(engine_shape(config))


def test_a_published_4b_at_4_bits_takes_what_it_should() -> None:
    """Bytes that follow from 4.3125 bits a weight, the head's first pass at the same and its table at 8 bits."""
    config = ModelConfig.from_mapping(published_config("4B"))
    plan = plan_memory(config, EngineOptions(format="int4", context=4096, parallel=1))
    head = config.vocab_size * config.hidden_size
    layers = 4_205_751_296 - head
    expected = (layers + head) * 4.3125 / 8 + head * 258 / 256
    assert plan.weights == pytest.approx(expected, rel=0.01)
