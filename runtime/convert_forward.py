"""The trunk in numpy, one layer's weights at a time: what a text feeds each matrix, and what the model says with its weights as published.

Slow and small: conversion looks at some hundred tokens once, and must not need a second back end or memory for a whole model. All
arithmetic is f32. Tokens are S sequences of L: x [S, L, columns].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .model_config import FULL_ATTENTION, ModelConfig
from .tensor_rows import TensorSource, to_float32
from .tensors import EMBEDDING, FINAL_NORM, HEAD, TensorSpec, expected_tensors

Float32 = NDArray[np.float32]
Note = Callable[[str, Float32], None]
"""Called with a converted tensor's name and its inputs [S, L, columns]."""

PIECE_ELEMENTS = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Trunk:
    """A model's tensors, read when they are needed."""

    source: TensorSource
    config: ModelConfig
    specs: dict[str, TensorSpec]

    @classmethod
    def of(cls, source: TensorSource, config: ModelConfig) -> Trunk:
        """For a dense model."""
        return cls(source, config, expected_tensors(config))

    def vector(self, name: str) -> Float32:
        """A small tensor in its shape."""
        shape = self.specs[name].shape
        stream = self.source.open(name)
        try:
            return to_float32(stream.take(shape[0]), stream.dtype).reshape(shape)
        finally:
            stream.close()

    def product(self, name: str, x: Float32) -> Float32:
        """x @ W.T, W read in pieces."""
        rows, columns = self.specs[name].shape
        stream, parts = self.source.open(name), []
        try:
            for begin in range(0, rows, step := max(1, PIECE_ELEMENTS // columns)):
                parts.append(x @ to_float32(stream.take(min(step, rows - begin)), stream.dtype).T)
        finally:
            stream.close()
        return np.concatenate(parts, axis=-1)

    def embed(self, ids: NDArray[np.int64]) -> Float32:
        """ids [S, L] -> [S, L, hidden]."""
        rows, columns = self.specs[EMBEDDING].shape
        found, stream = np.empty((*ids.shape, columns), np.float32), self.source.open(EMBEDDING)
        try:
            for begin in range(0, rows, step := max(1, PIECE_ELEMENTS // columns)):
                piece = to_float32(stream.take(min(step, rows - begin)), stream.dtype)
                here = (ids >= begin) & (ids < begin + len(piece))
                found[here] = piece[ids[here] - begin]
        finally:
            stream.close()
        return found

    def hidden(self, ids: NDArray[np.int64], note: Note) -> Float32:
        """Normed output of the last layer [S, L, hidden]."""
        config, eps = self.config, self.config.rms_norm_eps
        h = self.embed(ids)
        for i, kind in enumerate(config.layer_types):
            layer = f"layers.{i}."
            x = rms_norm(h, 1 + self.vector(f"{layer}input_layernorm.weight"), eps)
            is_attention = kind == FULL_ATTENTION
            note(f"{layer}{'qkv' if is_attention else 'in_proj'}", x)
            mixed = self.attention(layer, x) if is_attention else self.delta(layer, x)
            note(f"{layer}out_proj", mixed)
            out = "self_attn.o_proj" if is_attention else "linear_attn.out_proj"
            h = h + self.product(f"{layer}{out}.weight", mixed)
            x = rms_norm(h, 1 + self.vector(f"{layer}post_attention_layernorm.weight"), eps)
            note(f"{layer}gate_up", x)
            gate, up = (self.product(f"{layer}mlp.{part}_proj.weight", x) for part in ("gate", "up"))
            inner = silu(gate) * up
            note(f"{layer}down", inner)
            h = h + self.product(f"{layer}mlp.down_proj.weight", inner)
        return rms_norm(h, 1 + self.vector(FINAL_NORM), eps)

    def logits(self, hidden: Float32) -> Float32:
        """hidden [n, columns] -> [n, vocabulary]."""
        return self.product(EMBEDDING if self.config.tie_word_embeddings else HEAD, hidden)

    def attention(self, layer: str, x: Float32) -> Float32:
        """Gated attention, before its output projection."""
        c = self.config
        sequences, length, _ = x.shape
        q, k, v = (self.product(f"{layer}self_attn.{name}_proj.weight", x) for name in "qkv")
        both = q.reshape(sequences, length, c.num_attention_heads, 2, c.head_dim)
        q, gate = both[:, :, :, 0], both[:, :, :, 1]
        k, v = (each.reshape(sequences, length, c.num_key_value_heads, c.head_dim) for each in (k, v))
        q = self.turned(rms_norm(q, 1 + self.vector(f"{layer}self_attn.q_norm.weight"), c.rms_norm_eps))
        k = self.turned(rms_norm(k, 1 + self.vector(f"{layer}self_attn.k_norm.weight"), c.rms_norm_eps))
        k, v = (np.repeat(each, c.num_attention_heads // c.num_key_value_heads, axis=2) for each in (k, v))
        scores = np.einsum("sihd,sjhd->shij", q, k, optimize=True) / np.float32(math.sqrt(c.head_dim))
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, np.float32(-np.inf))
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        out = np.einsum("shij,sjhd->sihd", p, v, optimize=True) * sigmoid(gate)
        return np.ascontiguousarray(out, np.float32).reshape(sequences, length, -1)

    def turned(self, x: Float32) -> Float32:
        """Rotary positions 0, 1, .. of x [S, L, heads, dims]; of a text all axes have the same position."""
        rope = self.config.rope
        angles = np.outer(np.arange(x.shape[1]), rope.inverse_frequencies)[:, None, :]
        cos, sin = (np.float32(rope.amplitude) * f(angles).astype(np.float32) for f in (np.cos, np.sin))
        half = angles.shape[-1]
        low, high = x[..., :half], x[..., half : 2 * half]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin, x[..., 2 * half :]], axis=-1)

    def delta(self, layer: str, x: Float32) -> Float32:
        """Gated DeltaNet, token by token, before its output projection."""
        c, name = self.config, f"{layer}linear_attn."
        sequences, length, _ = x.shape
        heads, ratio = c.linear_num_value_heads, c.linear_num_value_heads // c.linear_num_key_heads
        mixed, z, b, a = (self.product(f"{name}in_proj_{part}.weight", x) for part in ("qkv", "z", "b", "a"))
        taps = self.vector(f"{name}conv1d.weight")[:, 0]
        before = np.concatenate([np.zeros((sequences, taps.shape[1] - 1, c.conv_dim), np.float32), mixed], axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(before, taps.shape[1], axis=1)
        mixed = silu(np.einsum("slcj,cj->slc", windows, taps))
        q, k, v = np.split(mixed, (c.linear_key_dim, 2 * c.linear_key_dim), axis=-1)
        q, k = (each.reshape(sequences, length, c.linear_num_key_heads, -1) for each in (q, k))
        q, k = (each / np.sqrt((each**2).sum(axis=-1, keepdims=True) + np.float32(1e-6)) for each in (q, k))
        q, k = (np.repeat(each, ratio, axis=2) for each in (q * np.float32(c.linear_key_head_dim**-0.5), k))
        v, z = (each.reshape(sequences, length, heads, c.linear_value_head_dim) for each in (v, z))
        rate = np.logaddexp(np.float32(0), a + self.vector(f"{name}dt_bias"))
        decay = np.exp(-np.exp(self.vector(f"{name}A_log")) * rate)[..., None, None]
        beta = sigmoid(b)[..., None]
        state = np.zeros((sequences, heads, c.linear_key_head_dim, c.linear_value_head_dim), np.float32)
        out = np.empty_like(v)
        for t in range(length):
            state *= decay[:, t]
            wrong = beta[:, t] * (v[:, t] - (k[:, t, :, None] @ state)[..., 0, :])
            state += k[:, t, :, :, None] * wrong[..., None, :]
            out[:, t] = (q[:, t, :, None] @ state)[..., 0, :]
        normed = rms_norm(out, self.vector(f"{name}norm.weight"), c.rms_norm_eps) * silu(z)
        return normed.reshape(sequences, length, -1)


def rms_norm(x: Float32, weight: Float32, eps: float) -> Float32:
    """Over the last axis."""
    scaled: Float32 = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + np.float32(eps)) * weight
    return scaled


def sigmoid(x: Float32) -> Float32:
    """1 / (1 + exp(-x)), without overflow."""
    shape: Float32 = np.float32(0.5) * (np.float32(1) + np.tanh(np.float32(0.5) * x))
    return shape


def silu(x: Float32) -> Float32:
    """x * sigmoid(x)."""
    return x * sigmoid(x)
