"""Models converted to int8 and int4 against the reference model with the very weights that the file stands for.

The file is read back in numpy by the definition of its layouts (tests/kernels/packing.py), every tensor is put under its published
name, and the torch reference computes with that in f32. What is left between the two is the rounding of activations: a product of
int8 or int4 weights reads each block of 256 activations as whole multiples of its largest / 127. Three references therefore:

rounded      reads the activations of those products rounded in the same way. Differences in the last bit of f32 remain, and where
             one makes an activation fall to another multiple, the next layer sees that: with depth they grow to what rounding costs
disturbed    is `rounded` with every activation changed by about 1e-7 of itself: it shows how far that goes. The native engine must
             stay nearer to `rounded` than `disturbed` does
unrounded    keeps activations in f32. Uniform errors of largest / 127 / sqrt(12) against a root mean square that is a third to a
             quarter of the largest are 0.6 to 0.9 % of a product, and grow over the layers as in `rounded`
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from shoal.kernels import ops
from shoal.kernels.reference import feed_forward
from shoal.kernels.reference.linear import tiled_linear
from shoal.runtime.batch import Batch, Row
from shoal.runtime.cache import HybridCache
from shoal.runtime.config import EngineOptions, ModelConfig, load_model_config
from shoal.runtime.container import open_container
from shoal.runtime.convert import convert_directory
from shoal.runtime.model import HybridModel
from shoal.runtime.plan import plan_memory
from shoal.runtime.score import score_directory
from shoal.runtime.synth import synthesise

torch.set_num_threads(1)

POCKET = Path(__file__).parents[2] / "models" / "pocket"
FORMATS = ("int8", "int4")
DISTURBANCE = 1e-7
"""Of one activation, relative: less than a unit in its last place."""
LAST_BITS = 5e-6
"""Root mean square of differences over that of the values, where nothing fell to another multiple."""
ONE_PRODUCT = (4e-3, 1e-2)
"""The same of what one product with rounded activations gives."""
TRAINED_ERROR = 0.03
"""The same of all that a trained model of four layers computes, against `unrounded`."""


def _packing() -> ModuleType:
    name = "shoal_test_packing"  # as the tests of the kernels call it
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "kernels" / "packing.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


packing = _packing()


# --- a converted file under its published names ----------------------------------------------------------------------


def held_values(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of a converted file, as the values that it stands for, [rows, cols] f32."""
    container = open_container(directory)
    found = {}
    for name, tensor in container.tensors.items():
        raw = np.fromfile(container.path, np.uint8, tensor.num_bytes, offset=tensor.offset)
        found[name] = unpacked(tensor.layout, raw, tensor.rows, tensor.cols)
    return found


def unpacked(layout: str, raw: np.ndarray, rows: int, cols: int) -> np.ndarray:
    blocks = -(-cols // 256)

    def scaled(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
        return (values * np.repeat(scales.astype(np.float32), 256, axis=1)[:, :cols]).astype(np.float32)

    if layout == "f32":
        return raw.view(np.float32)[: rows * cols].reshape(rows, cols)
    if layout == "rows16":
        return packing.from_bf16(raw[: rows * blocks * 512].view(np.uint16).reshape(rows, -1)[:, :cols])
    if layout == "rows8":
        lines = raw[: rows * blocks * 258].reshape(rows, -1)
        scales = np.ascontiguousarray(lines[:, blocks * 256 :]).view(np.float16)
        return scaled(lines[:, :cols].view(np.int8), scales)
    used = raw[: -(-rows // 32) * blocks * packing.BLOCK_BYTES[packing.FORMATS[layout]]]
    if layout == "bf16":
        return packing.unpack_bf16(used, rows, cols)
    if layout == "int8":
        return scaled(*packing.unpack_int8(used, rows, cols))
    nibbles, codes, scales = packing.unpack_int4(used, rows, cols)
    groups = np.repeat(packing.SCALES[codes], 16, axis=1)[:, :cols]
    return scaled(packing.LEVELS[nibbles] * groups, scales)


def published_values(held: dict[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """By the names of the trunk's published tensors."""
    out = {"embed_tokens.weight": held["embed.table"], "norm.weight": held["norm"].ravel() - 1}
    if not config.tie_word_embeddings:
        out["lm_head.weight"] = held["head.table"]
    for i, kind in enumerate(config.layer_types):
        w = {
            name.removeprefix(f"layers.{i}."): value for name, value in held.items() if name.startswith(f"layers.{i}.")
        }
        size = config.intermediate_size
        both = w["gate_up"].reshape(-1, 2, 16, config.hidden_size)  # 16 rows of each in turn
        layer = {
            "input_layernorm.weight": w["input_norm"].ravel() - 1,
            "post_attention_layernorm.weight": w["post_norm"].ravel() - 1,
            "mlp.gate_proj.weight": both[:, 0].reshape(-1, config.hidden_size)[:size],
            "mlp.up_proj.weight": both[:, 1].reshape(-1, config.hidden_size)[:size],
            "mlp.down_proj.weight": w["down"],
        }
        if kind == "full_attention":
            q, k, v = np.split(w["qkv"], np.cumsum([2 * config.query_dim, config.key_value_dim]))
            layer |= {"self_attn.q_proj.weight": q, "self_attn.k_proj.weight": k, "self_attn.v_proj.weight": v}
            layer["self_attn.o_proj.weight"] = w["out_proj"]
            layer |= {f"self_attn.{name}.weight": w[name].ravel() - 1 for name in ("q_norm", "k_norm")}
        else:
            heads = config.linear_num_value_heads
            layer |= {
                "linear_attn.in_proj_qkv.weight": w["in_proj"][: config.conv_dim],
                "linear_attn.in_proj_z.weight": w["in_proj"][config.conv_dim :],
                "linear_attn.in_proj_b.weight": w["gates"][:heads],
                "linear_attn.in_proj_a.weight": w["gates"][heads:],
                "linear_attn.conv1d.weight": w["conv"].reshape(config.conv_dim, 1, -1),
                "linear_attn.A_log": np.log(-w["decay"].ravel()),
                "linear_attn.dt_bias": w["dt_bias"].ravel(),
                "linear_attn.norm.weight": w["mixer_norm"].ravel(),
                "linear_attn.out_proj.weight": w["out_proj"],
            }
        out |= {f"layers.{i}.{name}": value for name, value in layer.items()}
    return out


# --- the reference ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Converted:
    """A directory and the reference model of what it holds."""

    directory: Path
    config: ModelConfig
    model: HybridModel
    exact: frozenset[int]
    """Addresses of the matrices whose products read activations as they are."""

    @classmethod
    def of(cls, directory: Path) -> Converted:
        config = load_model_config(directory)
        tensors = published_values(held_values(directory), config)
        weights = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in tensors.items()}
        layouts = {name: tensor.layout for name, tensor in open_container(directory).tensors.items()}
        assert {layouts[f"layers.{i}.down"] for i in range(config.num_layers)} <= {"int8", "int4"}
        gates = [w.data_ptr() for name, w in weights.items() if name.endswith(("in_proj_a.weight", "in_proj_b.weight"))]
        return cls(directory, config, HybridModel.of(weights, config), frozenset(gates))

    def reference(self, ids: Sequence[int]) -> dict[str, np.ndarray]:
        """Under the names that `shoal model score` gives."""
        options = EngineOptions(backend="reference", kv_format="bf16", context=512, parallel=1)
        cache = HybridCache.allocate(self.config, plan_memory(self.config, options))
        row = Row(len(ids), 0, tuple(range(cache.num_blocks)), 0)
        logits = self.model.forward(Batch(list(ids), [row], list(range(len(ids)))), cache)
        found = {"logits": logits}
        for i in self.config.linear_layers:
            found |= {f"conv.{i}": cache.columns[i][0], f"state.{i}": cache.states[i][0]}
        for i in self.config.attention_layers:
            for name, pool in (("k", cache.keys), ("v", cache.values)):
                found[f"{name}.{i}"] = pool[i].float().flatten(0, 1)[: len(ids)]
        return {name: value.numpy() for name, value in found.items()}

    def rounding(self, x: torch.Tensor, weight: torch.Tensor, tiles: Sequence[slice]) -> torch.Tensor:
        """The reference's product, of activations as the kernels read them."""
        if weight.data_ptr() in self.exact:
            return tiled_linear(x, weight, tiles)
        q = packing.quantise(x.numpy())
        read = q.q.astype(np.float32) * np.repeat(q.scale, 256, axis=1)
        return tiled_linear(torch.from_numpy(read[:, : x.shape[1]].copy()), weight, tiles)

    def rounded(self, ids: Sequence[int], disturbance: float = 0.0) -> dict[str, np.ndarray]:
        """The reference with that product in the place of its own."""
        draw = np.random.default_rng(1)

        def product(x: torch.Tensor, weight: torch.Tensor, tiles: Sequence[slice]) -> torch.Tensor:
            change = 1 + disturbance * draw.standard_normal(x.shape)
            return self.rounding(x * torch.from_numpy(change.astype(np.float32)), weight, tiles)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ops, "tiled_linear", product)
            patch.setattr(feed_forward, "tiled_linear", product)
            return self.reference(ids)

    def scored(self, ids: Sequence[int], folder: Path, *splits: int) -> dict[str, np.ndarray]:
        (folder / "ids.json").write_text(json.dumps(list(ids)))
        score_directory(self.directory, folder / "ids.json", folder / "o.safetensors", EngineOptions(threads=1), splits)
        return load_file(folder / "o.safetensors")


def errors_of(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> dict[str, float]:
    assert got.keys() == want.keys()
    return {
        name: float(np.sqrt(((got[name] - value) ** 2).mean() / max((value**2).mean(), 1e-30)))
        for name, value in want.items()
    }


def assert_rounded(converted: Converted, ids: Sequence[int], got: dict[str, np.ndarray]) -> None:
    want, disturbed = converted.rounded(ids), converted.rounded(ids, DISTURBANCE)
    errors, allowed = errors_of(got, want), errors_of(disturbed, want)
    assert {name: (error, allowed[name]) for name, error in errors.items() if error > allowed[name] + LAST_BITS} == {}


# --- random models of odd shapes -------------------------------------------------------------------------------------

LINEAR, FULL = "linear_attention", "full_attention"
SHAPES: dict[str, dict[str, Any]] = {
    "tied": {"hidden_size": 264, "intermediate_size": 300, "layer_types": [LINEAR, FULL, LINEAR], "values": 3},
    "untied": {"hidden_size": 88, "intermediate_size": 600, "layer_types": [FULL, LINEAR, LINEAR, FULL], "values": 2},
}


def whole_shape(name: str) -> dict[str, Any]:
    given = dict(SHAPES[name])
    return {
        "model_type": "qwen3_5_text",
        "vocab_size": 333,
        "num_hidden_layers": len(given["layer_types"]),
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2 * given.pop("values"),
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 48,
        "linear_conv_kernel_dim": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": name == "tied",
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e5,
            "partial_rotary_factor": 0.25,
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
        },
    } | given


@pytest.fixture(scope="module", params=[(name, format_) for name in SHAPES for format_ in FORMATS], ids="-".join)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    name, format_ = request.param
    folder = tmp_path_factory.mktemp("quantised")
    synthesise(whole_shape(name), folder / "published", seed=3)
    convert_directory(folder / "published", folder / format_, format_)
    return Converted.of(folder / format_)


def ids_of(converted: Converted, count: int) -> list[int]:
    return np.random.default_rng(count).integers(0, converted.config.vocab_size, count).tolist()


def test_with_rounded_activations(converted: Converted, tmp_path: Path) -> None:
    ids = ids_of(converted, 150)
    assert_rounded(converted, ids, converted.scored(ids, tmp_path))


def test_one_token_is_the_same_to_the_last_bits(converted: Converted, tmp_path: Path) -> None:
    """So few activations that most of these see no fall to another multiple."""
    errors = []
    for token_id in ids_of(converted, 7):
        errors.append(errors_of(converted.scored([token_id], tmp_path), converted.rounded([token_id]))["logits"])
    assert np.median(errors) < LAST_BITS, errors


def test_with_activations_as_they_are(converted: Converted, tmp_path: Path) -> None:
    ids = ids_of(converted, 150)
    got, want = converted.scored(ids, tmp_path, 1, 17, 65), converted.reference(ids)
    errors, allowed = errors_of(got, want), errors_of(converted.rounded(ids), want)
    assert {name: (error, allowed[name]) for name, error in errors.items() if error > 1.2 * allowed[name]} == {}
    first = "k.0" if converted.config.layer_types[0] == FULL else "conv.0"
    assert ONE_PRODUCT[0] < errors[first] < ONE_PRODUCT[1]


# --- the packaged model, whose weights were trained ------------------------------------------------------------------


@pytest.fixture(scope="module", params=FORMATS)
def pocket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    out = tmp_path_factory.mktemp("pocket") / request.param
    convert_directory(POCKET, out, request.param)
    return Converted.of(out)


def conversations(count: int) -> list[list[int]]:
    """Prompts and answers of the packaged model, of several skills."""
    golden = json.loads((POCKET / "golden.json").read_text(encoding="utf-8"))
    return [entry["prompt_ids"] + entry["ids"] for entry in golden[:: max(len(golden) // count, 1)][:count]]


def test_a_trained_model_scores_its_conversations_alike(pocket: Converted, tmp_path: Path) -> None:
    """Where the best id is another one, both logits are near: within what the rounding of activations may move them."""
    same = total = 0
    for ids in conversations(6):
        got, want = pocket.scored(ids, tmp_path), pocket.reference(ids)
        errors = errors_of(got, want)
        assert {name: error for name, error in errors.items() if error >= TRAINED_ERROR} == {}
        ours, theirs = got["logits"].argmax(axis=1), want["logits"].argmax(axis=1)
        spread = want["logits"].std(axis=1)
        for at in np.flatnonzero(ours != theirs):
            a, b = float(want["logits"][at, ours[at]]), float(want["logits"][at, theirs[at]])
            said = f"position {at}: {ours[at]} with {a:.4f}, the reference's best is {theirs[at]} with {b:.4f}"
            assert b - a < 0.2 * spread[at], said
        same, total = same + int((ours == theirs).sum()), total + len(ids)
    assert same >= 0.98 * total, (same, total)


def test_a_trained_model_with_rounded_activations(pocket: Converted, tmp_path: Path) -> None:
    ids = conversations(1)[0]
    errors = errors_of(pocket.scored(ids, tmp_path), pocket.rounded(ids))
    assert {name: error for name, error in errors.items() if error >= TRAINED_ERROR / 5} == {}
