"""Small random models twice: packed for the native engine, and as the weights of the reference model that they stand for.

Every matrix is drawn in its packed format, so that the reference sees exactly the values that the engine multiplies with.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from types import ModuleType
from typing import NamedTuple

import numpy as np

from shoal.kernels.cpu.engine import ATTENTION, DELTA, Engine, EngineShape, EngineSizes, WeightTensor

NUM_PAGES, NUM_SLOTS = 24, 6
PAGES = (7, 2, 19, 0)
SIZES = EngineSizes(num_pages=NUM_PAGES, num_slots=NUM_SLOTS, max_tokens=256, max_rows=6, max_full_rows=256)


@dataclass(frozen=True)
class TinyModel:
    """`published` holds f32 arrays by the names of a published checkpoint's trunk."""

    shape: EngineShape
    buffer: np.ndarray
    tensors: list[WeightTensor]
    published: dict[str, np.ndarray]
    config: dict[str, object]

    def engine(self, **sizes: object) -> Engine:
        return Engine(self.shape, replace(SIZES, **sizes), self.buffer, self.tensors)


def random_shape(seed: int, **changes: object) -> EngineShape:
    """Sizes that fill neither panels nor blocks, all ratios of heads."""
    draw = random.Random(seed)
    key_heads, kv_heads = draw.choice([1, 2, 3]), draw.choice([1, 2])
    head_dim = draw.choice([16, 32, 48])
    num_angles = head_dim // 4
    layers = draw.choice([[DELTA] * 3 + [ATTENTION], [ATTENTION, DELTA, ATTENTION, DELTA], [DELTA, ATTENTION, DELTA]])
    values = {
        "vocab_size": draw.randint(70, 400),
        "hidden_size": draw.choice([40, 72, 264]),
        "intermediate_size": draw.choice([56, 96, 300]),
        "layers": tuple(layers),
        "heads": kv_heads * draw.choice([1, 2, 3]),
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "key_heads": key_heads,
        "value_heads": key_heads * draw.choice([1, 2, 3]),
        "key_dim": draw.choice([16, 32]),
        "value_dim": draw.choice([16, 48]),
        "eps": 1e-6,
        "inverse_frequencies": tuple(1e4 ** (-j / num_angles) for j in range(num_angles)),
        "rotary_axes": tuple(j % 3 for j in range(num_angles)),
        "tied_head": seed % 2 == 0,
    }
    return EngineShape(**{**values, **changes})


def random_model(packing: ModuleType, seed: int, weight_format: str, **changes: object) -> TinyModel:
    """Of `weight_format`: matrices in it, the head's scan a step coarser, tables int8 (bf16 for bf16)."""
    return _Builder(packing, random_shape(seed, **changes), seed, weight_format).build()


class _Builder:
    def __init__(self, packing: ModuleType, shape: EngineShape, seed: int, weight_format: str) -> None:
        self.packing, self.shape, self.format = packing, shape, weight_format
        self.rng = np.random.default_rng(seed)
        self.pieces: list[np.ndarray] = []
        self.tensors: list[WeightTensor] = []
        self.offset = 0
        self.published: dict[str, np.ndarray] = {}

    def put(self, name: str, layout: str, rows: int, cols: int, data: np.ndarray) -> None:
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self.tensors.append(WeightTensor(name, layout, rows, cols, self.offset, raw.size))
        size = self.packing.up(raw.size, 64)
        self.pieces.append(np.pad(raw, (0, size - raw.size)))
        self.offset += size

    def vector(self, name: str, values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float32)
        self.put(name, "f32", values.shape[0], values.size // values.shape[0], values)
        return values

    def matrix(
        self, name: str, rows: int, cols: int, layout: str | None = None, order: np.ndarray | None = None
    ) -> np.ndarray:
        """Draws W [rows, cols], packs its rows in `order` (-1: a row of zeros), returns W."""
        layout = self.format if layout is None else layout
        loud = 0.5 / cols**0.5
        blocks, groups = -(-cols // 256), -(-cols // 16)
        order = np.arange(rows) if order is None else order
        absent = order < 0
        if layout == "bf16":
            w = self.packing.from_bf16(self.packing.to_bf16(self.rng.standard_normal((rows, cols), np.float32) * loud))
            packed = self.packing.bf16_weights(np.where(absent[:, None], 0, w[order]).astype(np.float32))
        elif layout == "int8":
            v = np.clip(self.rng.normal(0, 40, (rows, cols)).round(), -127, 127).astype(np.int16)
            d = (loud / 40 * self.rng.uniform(0.7, 1.4, (rows, blocks))).astype(np.float16)
            packed = self.packing.int8_weights(np.where(absent[:, None], 0, v[order]), d[order].astype(np.float32))
            w = v * np.repeat(d.astype(np.float32), 256, axis=1)[:, :cols]
        else:
            nibbles, codes = self.rng.integers(0, 16, (rows, cols)), self.rng.integers(0, 16, (rows, groups))
            d = (loud / 40 * self.rng.uniform(0.7, 1.4, (rows, blocks))).astype(np.float16)
            packed = self.packing.int4_weights(
                np.where(absent[:, None], 8, nibbles[order]), codes[order], d[order].astype(np.float32)
            )
            levels = self.packing.LEVELS[nibbles] * np.repeat(self.packing.SCALES[codes], 16, axis=1)[:, :cols]
            w = levels * np.repeat(d.astype(np.float32), 256, axis=1)[:, :cols]
        self.put(name, layout, len(order), cols, packed.data)
        return w.astype(np.float32)

    def head(self) -> None:
        """Tables of values with more digits than the scan keeps; sigma is the scan's true error."""
        s, p = self.shape, self.packing
        vocab, hidden = s.vocab_size, s.hidden_size
        blocks = -(-hidden // 256)
        for name, into in (("embed", "embed_tokens.weight"), ("head", "lm_head.weight")):
            if name == "head" and s.tied_head:
                continue
            if self.format == "bf16":
                table = p.from_bf16(p.to_bf16(self.rng.standard_normal((vocab, hidden), np.float32)))
                self.put(f"{name}.table", "rows16", vocab, hidden, p.pack_rows16(table))
            else:
                q = np.clip(self.rng.normal(0, 40, (vocab, hidden)).round(), -127, 127).astype(np.int16)
                d = (self.rng.uniform(0.02, 0.03, (vocab, blocks))).astype(np.float16).astype(np.float32)
                self.put(f"{name}.table", "rows8", vocab, hidden, p.pack_rows8(q, d))
                table = q * np.repeat(d, 256, axis=1)[:, :hidden]
            self.published[into] = table.astype(np.float32)
        exact = table  # the last one drawn is what the head scores with
        groups = -(-hidden // 16)
        if self.format == "bf16":
            d = np.abs(p.padded(exact, 1, 256).reshape(vocab, blocks, 256)).max(-1) / 127
            d = np.maximum(d, 1e-4).astype(np.float16).astype(np.float32)
            q = np.clip(np.rint(exact / np.repeat(d, 256, axis=1)[:, :hidden]), -127, 127)
            scan = p.int8_weights(q.astype(np.int16), d)
        else:
            d = np.abs(p.padded(exact, 1, 256).reshape(vocab, blocks, 256)).max(-1) / 96
            d = d.astype(np.float16).astype(np.float32)
            peaks = np.abs(p.padded(exact, 1, 16).reshape(vocab, groups, 16)).max(-1)
            codes = np.clip(np.rint(peaks / np.repeat(d, 16, axis=1)[:, :groups] / 15), 1, 8).astype(int)
            steps = np.repeat(codes, 16, axis=1)[:, :hidden] * np.repeat(d, 256, axis=1)[:, :hidden]
            nibbles = np.abs((exact / steps)[..., None] - p.LEVELS).argmin(-1)
            scan = p.int4_weights(nibbles, codes, d)
        self.put("head.scan", "int8" if self.format == "bf16" else "int4", vocab, hidden, scan.data)
        self.vector("head.sigma", np.sqrt(((exact - scan.dequantised()) ** 2).mean(-1)))

    def norm(self, name: str, published: str, size: int, offset: float = 1.0) -> None:
        w = (self.rng.standard_normal(size) * 0.25).astype(np.float32) + np.float32(1 - offset)
        self.published[published] = w
        self.vector(name, w + np.float32(offset))

    def build(self) -> TinyModel:
        s = self.shape
        self.head()
        self.norm("norm", "norm.weight", s.hidden_size)
        for i, kind in enumerate(s.layers):
            self.norm(f"layers.{i}.input_norm", f"layers.{i}.input_layernorm.weight", s.hidden_size)
            (self.delta if kind == DELTA else self.attention)(f"layers.{i}.")
            self.norm(f"layers.{i}.post_norm", f"layers.{i}.post_attention_layernorm.weight", s.hidden_size)
            self.feed_forward(f"layers.{i}.")
        buffer = self.packing.align(np.concatenate(self.pieces))
        return TinyModel(s, buffer, self.tensors, self.published, self.config())

    def delta(self, layer: str) -> None:
        s, to = self.shape, f"{layer}linear_attn."
        key, value = s.key_heads * s.key_dim, s.value_heads * s.value_dim
        w = self.matrix(f"{layer}in_proj", 2 * key + 2 * value, s.hidden_size)
        self.published[f"{to}in_proj_qkv.weight"] = w[: 2 * key + value]
        self.published[f"{to}in_proj_z.weight"] = w[2 * key + value :]
        gates = self.matrix(f"{layer}gates", 2 * s.value_heads, s.hidden_size, "bf16")
        self.published[f"{to}in_proj_b.weight"] = gates[: s.value_heads]
        self.published[f"{to}in_proj_a.weight"] = gates[s.value_heads :]
        conv = self.vector(f"{layer}conv", self.rng.standard_normal((2 * key + value, 4)) * 0.4)
        self.published[f"{to}conv1d.weight"] = conv[:, None, :]
        a_log = self.rng.standard_normal(s.value_heads).astype(np.float32)
        self.published[f"{to}A_log"] = a_log
        self.vector(f"{layer}decay", -np.exp(a_log))
        self.published[f"{to}dt_bias"] = self.vector(f"{layer}dt_bias", self.rng.standard_normal(s.value_heads))
        self.norm(f"{layer}mixer_norm", f"{to}norm.weight", s.value_dim, offset=0)
        self.published[f"{to}out_proj.weight"] = self.matrix(f"{layer}out_proj", s.hidden_size, value)

    def attention(self, layer: str) -> None:
        s, to = self.shape, f"{layer}self_attn."
        query, key = s.heads * s.head_dim, s.kv_heads * s.head_dim
        w = self.matrix(f"{layer}qkv", 2 * query + 2 * key, s.hidden_size)
        for name, rows in (
            ("q", slice(2 * query)),
            ("k", slice(2 * query, 2 * query + key)),
            ("v", slice(2 * query + key, None)),
        ):
            self.published[f"{to}{name}_proj.weight"] = w[rows]
        self.norm(f"{layer}q_norm", f"{to}q_norm.weight", s.head_dim)
        self.norm(f"{layer}k_norm", f"{to}k_norm.weight", s.head_dim)
        self.published[f"{to}o_proj.weight"] = self.matrix(f"{layer}out_proj", s.hidden_size, query)

    def feed_forward(self, layer: str) -> None:
        s = self.shape
        size, whole = s.intermediate_size, self.packing.up(s.intermediate_size, 16)
        row = np.arange(whole)
        at = np.where(row < size, row, -1)
        order = np.stack([at.reshape(-1, 16), np.where(at < 0, -1, at + size).reshape(-1, 16)], axis=1).reshape(-1)
        w = self.matrix(f"{layer}gate_up", 2 * size, s.hidden_size, order=order)
        self.published[f"{layer}mlp.gate_proj.weight"] = w[:size]
        self.published[f"{layer}mlp.up_proj.weight"] = w[size:]
        self.published[f"{layer}mlp.down_proj.weight"] = self.matrix(f"{layer}down", s.hidden_size, size)

    def config(self) -> dict[str, object]:
        """config.json of the model; the rotation is 1e4^(-j / (head_dim / 4)) on half of the head."""
        s = self.shape
        return {
            "model_type": "qwen3_5_text",
            "vocab_size": s.vocab_size,
            "hidden_size": s.hidden_size,
            "intermediate_size": s.intermediate_size,
            "num_hidden_layers": len(s.layers),
            "layer_types": ["linear_attention" if kind == DELTA else "full_attention" for kind in s.layers],
            "num_attention_heads": s.heads,
            "num_key_value_heads": s.kv_heads,
            "head_dim": s.head_dim,
            "linear_num_key_heads": s.key_heads,
            "linear_num_value_heads": s.value_heads,
            "linear_key_head_dim": s.key_dim,
            "linear_value_head_dim": s.value_dim,
            "linear_conv_kernel_dim": 4,
            "rms_norm_eps": s.eps,
            "tie_word_embeddings": s.tied_head,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "mrope_section": [len(s.rotary_axes), 0, 0],
                "mrope_interleaved": True,
            },
        }


def ids_of(model, count, seed=0):
    return np.random.default_rng(seed).integers(0, model.shape.vocab_size, count).astype(np.int32)


def int32(*values):
    return np.array(values, np.int32)


class Result(NamedTuple):
    full: np.ndarray
    top: list


def step(engine, rows, full_at=None, top=()):
    """rows: (ids, start, slot, pages) each; whole logits of every token unless told otherwise."""
    ids = np.concatenate([row[0] for row in rows])
    begins = np.cumsum([0, *(len(row[3]) for row in rows)])
    table = [(len(row[0]), row[1], row[2], begin) for row, begin in zip(rows, begins, strict=False)]
    pages = np.concatenate([int32(*row[3]) for row in rows])
    at = np.arange(len(ids), dtype=np.int32) if full_at is None else int32(*full_at)
    full = np.empty((len(at), engine.shape.vocab_size), np.float32)
    best = engine.step(ids, np.array(table, np.int32), pages, top, at, full)
    return Result(full, best)


def run(engine, ids, start=0, slot=0, pages=PAGES):
    return step(engine, [(ids, start, slot, pages)]).full


def assert_same_bits(got, want):
    for a, b in zip(got, want, strict=True):
        assert np.array_equal(a.view(np.uint32), b.view(np.uint32))
