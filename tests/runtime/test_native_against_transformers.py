"""The native back end in bf16 against transformers' own implementation of the family, on random checkpoints of odd shapes.

Both see the same bf16 weights and compute in f32; what differs is the order of sums, and so the last bits of everything. Where the
native engine is told to keep keys and values in bf16, that is no error but a format, so transformers' cache is made to round
as well; what is left is f32 rounding, and now and then a key or value that lies so near the middle between two bf16 that it falls
to the other side: one part in 256 of one number among thousands.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_driver import run_one  # type: ignore[import-not-found]
from safetensors.numpy import load_file
from torch.overrides import TorchFunctionMode
from transformers import Qwen3_5ForCausalLM, cache_utils
from transformers.utils import logging

from shoal.runtime.config import EngineOptions
from shoal.runtime.loading import load_engine
from shoal.runtime.score import score_directory
from shoal.runtime.synth import synthesise
from shoal.runtime.wire import IdsPrompt, Request, Sampling

torch.set_num_threads(1)
logging.set_verbosity_error()  # it says once a process which fast kernels are not installed

SEEDS = range(8)
RELATIVE_ERROR = 3e-3
"""Root mean square of the differences, over that of the values: one number that fell to the other side, in a sequence of one token,
is 1 / 256 of itself, and largest where there are few beside it."""
ROUNDING = 1e-5
"""The same before any key or value was rounded: f32 alone."""
FORMAT_ERROR = 1e-2
"""The same against a cache in f32: what bf16 keys and values cost, 2^-9 of each and more after some layers."""
NEAR_TIE = 0.02
"""Logits nearer than this may change places: their standard deviation is about 2."""
NUM_DRAWN = 24


def random_shape(seed: int) -> dict[str, Any]:
    """Shapes that the native kernels take and no published size has."""
    draw = random.Random(seed)
    head_dim = (64, 256, 48, 16)[seed % 4]
    factor = 0.25 if head_dim >= 64 else 0.5
    half = int(head_dim * factor) // 2
    height = draw.randint(0, half // 3)
    kv_heads, key_heads = draw.choice([1, 2]), draw.choice([1, 2, 3])
    linear, full = "linear_attention", "full_attention"
    return {
        "model_type": "qwen3_5_text",
        "vocab_size": draw.randint(300, 500),
        "hidden_size": draw.choice([72, 200, 264, 328]),
        "intermediate_size": draw.choice([56, 120, 300]),
        "num_hidden_layers": 4,
        "layer_types": [[linear] * 3 + [full], [full, linear, full, linear], [linear, full, linear, linear]][seed % 3],
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * draw.choice([1, 2, 3]),
        "head_dim": head_dim,
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": key_heads * (1 + seed // 2 % 4),
        "linear_key_head_dim": draw.choice([16, 48, 128]),
        "linear_value_head_dim": draw.choice([16, 32, 80]),
        "linear_conv_kernel_dim": 4,
        "tie_word_embeddings": seed % 2 == 0,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": draw.choice([1e3, 1e5, 1e7]),
            "partial_rotary_factor": factor,
            "mrope_section": [half - height - height // 2, height, height // 2],
            "mrope_interleaved": True,
        },
    }


def spread(model: torch.nn.Module, seed: int) -> None:
    """Weights as no initialisation leaves them: norms away from 0 and 1, decays over orders of magnitude."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if "norm" in name:
                p.add_(0.25 * noise)
            elif name.endswith(("A_log", "dt_bias")):
                p.copy_(noise)
            elif "embed_tokens" in name or "lm_head" in name:
                p.copy_(noise * (2 / p.shape[-1] ** 0.5))
            else:
                p.copy_(noise * (0.7 / p.shape[-1] ** 0.5))


@pytest.fixture
def bf16_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values in transformers' cache are rounded as ours are."""
    update = cache_utils.DynamicLayer.update

    def rounded(self: Any, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return update(self, keys.bfloat16().float(), values.bfloat16().float(), *args, **kwargs)

    monkeypatch.setattr(cache_utils.DynamicLayer, "update", rounded)


@dataclass(frozen=True)
class Checkpoint:
    """A directory, and transformers' model of it in f32."""

    directory: Path
    theirs: torch.nn.Module
    shape: dict[str, Any]

    @torch.no_grad()
    def reference(self, ids: list[int]) -> tuple[np.ndarray, Any]:
        out = self.theirs(torch.tensor([ids]), use_cache=True)
        return out.logits[0].numpy(), out.past_key_values

    def ids(self, count: int) -> list[int]:
        return np.random.default_rng(count).integers(0, self.shape["vocab_size"], count).tolist()


def checkpoint_of(folder: Path, shape: dict[str, Any], seed: int) -> Checkpoint:
    synthesise(shape, folder / "model", seed=seed)
    theirs = Qwen3_5ForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    return Checkpoint(folder / "model", theirs, shape)


@pytest.fixture(scope="module", params=SEEDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint_of(tmp_path_factory.mktemp("against"), random_shape(request.param), request.param)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def scored(
    checkpoint: Checkpoint, ids: list[int], home: Path, *splits: int, kv_format: str = "bf16"
) -> dict[str, np.ndarray]:
    home.mkdir(exist_ok=True)
    (home / "ids.json").write_text(json.dumps(ids))
    options = EngineOptions(backend="cpu", format="bf16", kv_format=kv_format, threads=1)
    score_directory(checkpoint.directory, home / "ids.json", home / "o.safetensors", options, splits)
    return load_file(home / "o.safetensors")


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.sqrt(((got - want) ** 2).mean() / max((want**2).mean(), 1e-30)))


def assert_close(got: dict[str, np.ndarray], logits: np.ndarray, cache: Any, shape: dict[str, Any]) -> None:
    kinds = shape["layer_types"]
    before = [i for i in range(len(kinds)) if "full_attention" not in kinds[:i]]  # no key or value came into these
    errors = {"logits": relative_error(got["logits"], logits)}
    bounds = {"logits": RELATIVE_ERROR}
    for i, kind in enumerate(kinds):
        layer = cache.layers[i]
        if kind == "full_attention":
            want = {f"k.{i}": layer.keys[0].transpose(0, 1), f"v.{i}": layer.values[0].transpose(0, 1)}
        else:
            state, columns = layer.recurrent_states, layer.conv_states
            if isinstance(state, dict):  # a cache may keep several kinds of state, by index
                state, columns = state[0], columns[0]
            want = {f"state.{i}": state[0], f"conv.{i}": columns[0][:, -3:]}
        errors |= {name: relative_error(got[name], tensor.numpy()) for name, tensor in want.items()}
        exact = kind == "linear_attention" and i in before
        bounds |= dict.fromkeys(want, ROUNDING if exact else RELATIVE_ERROR)
    assert {name: error for name, error in errors.items() if error >= bounds[name]} == {}


@pytest.mark.parametrize("num_tokens", [1, 150])
@pytest.mark.usefixtures("bf16_cache")
def test_logits_and_caches_equal_the_reference(checkpoint: Checkpoint, home: Path, num_tokens: int) -> None:
    ids = checkpoint.ids(num_tokens)
    logits, cache = checkpoint.reference(ids)
    assert_close(scored(checkpoint, ids, home), logits, cache, checkpoint.shape)


@pytest.mark.parametrize("num_tokens", [1, 2, 63, 64, 65, 150])
@pytest.mark.parametrize("checkpoint", [*range(12), 18, 24, 55], indirect=True)
def test_by_default_nothing_is_rounded(checkpoint: Checkpoint, home: Path, num_tokens: int) -> None:
    """4, 18, 24 and 55 have a token whose gated norm magnifies what came before: they failed where sums were long chains."""
    ids = checkpoint.ids(num_tokens)
    logits, _ = checkpoint.reference(ids)
    got = scored(checkpoint, ids, home, kv_format="auto")["logits"]
    with torch.no_grad():
        exact = copy.deepcopy(checkpoint.theirs).double()(torch.tensor([ids])).logits[0].numpy()
    noise = np.abs(logits - exact).max()  # of f32 itself: steep gates magnify it
    assert np.abs(got - logits).max() < max(1e-4, 4 * noise)


class Double(TorchFunctionMode):
    """What asks for f32 gets f64: norms, softmax and delta rule of transformers do, in a model of f64 too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        double = {torch.float32: torch.float64}
        args = tuple(double.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
        kwargs = {k: double.get(v, v) if isinstance(v, torch.dtype) else v for k, v in (kwargs or {}).items()}
        return (torch.Tensor.double if func is torch.Tensor.float else func)(*args, **kwargs)


@pytest.mark.parametrize("checkpoint", [15], indirect=True)
def test_where_transformers_strays_the_exact_is_near(checkpoint: Checkpoint, home: Path) -> None:
    """Here its own f32 is 2e-4 wrong, and so is its model of f64, which is f32 in places: no measure of its noise. One that is f64
    throughout shows which of the two is right."""
    ids = checkpoint.ids(63)
    logits, _ = checkpoint.reference(ids)
    got = scored(checkpoint, ids, home, kv_format="auto")["logits"]
    with torch.no_grad(), Double():
        exact = copy.deepcopy(checkpoint.theirs).double()(torch.tensor([ids])).logits[0].numpy()
    noise = np.abs(logits - exact).max()
    assert noise > 1e-4
    assert np.abs(got - exact).max() < 1e-4
    assert np.abs(got - logits).max() < 4 * noise


def test_a_cache_in_f32_differs_by_the_format(checkpoint: Checkpoint, home: Path) -> None:
    ids = checkpoint.ids(90)
    assert relative_error(scored(checkpoint, ids, home)["logits"], checkpoint.reference(ids)[0]) < FORMAT_ERROR


def test_without_attention_it_is_f32_throughout(tmp_path: Path, home: Path) -> None:
    shape = random_shape(2) | {"layer_types": ["linear_attention"] * 4}
    checkpoint = checkpoint_of(tmp_path, shape, 2)
    ids = checkpoint.ids(150)
    with torch.no_grad():
        want = checkpoint.theirs(torch.tensor([ids]), use_cache=False).logits[0].numpy()  # no such cache there
    assert relative_error(scored(checkpoint, ids, home, 1, 17, 100)["logits"], want) < ROUNDING


@pytest.mark.usefixtures("bf16_cache")
def test_static_yarn_equals_the_reference(tmp_path: Path, home: Path) -> None:
    shape = random_shape(5)
    shape["rope_parameters"] |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    checkpoint = checkpoint_of(tmp_path, shape, 5)
    ids = checkpoint.ids(200)
    logits, cache = checkpoint.reference(ids)
    assert_close(scored(checkpoint, ids, home), logits, cache, shape)


@pytest.mark.usefixtures("bf16_cache")
@pytest.mark.parametrize("seed", range(4))
def test_what_transformers_saved_equals_what_it_computes(tmp_path: Path, home: Path, seed: int) -> None:
    """Its own file of its own names, every tensor in bf16, with loud norms and decays from nothing to all."""
    shape = random_shape(seed)
    synthesise(shape, tmp_path / "model", seed=seed)
    theirs = Qwen3_5ForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    spread(theirs, seed)
    (tmp_path / "model" / "model.safetensors").unlink()
    theirs.bfloat16().save_pretrained(tmp_path / "saved")
    for path in (tmp_path / "saved").glob("*.safetensors*"):
        shutil.copy(path, tmp_path / "model")
    theirs = Qwen3_5ForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    checkpoint = Checkpoint(tmp_path / "model", theirs, shape)
    ids = checkpoint.ids(150)
    logits, cache = checkpoint.reference(ids)
    assert_close(scored(checkpoint, ids, home, 63, 64), logits, cache, shape)


def test_greedy_ids_equal_the_reference(checkpoint: Checkpoint, home: Path) -> None:
    """What the native engine drew, read by transformers: at each place it would have drawn the same, or it was a near tie."""
    options = EngineOptions(backend="cpu", format="bf16", threads=2, parallel=2, context=256, max_batched_tokens=32)
    loaded = load_engine(checkpoint.directory, options, home=home)
    prompt = checkpoint.ids(40)
    request = Request(
        request_id="r",
        prompt=IdsPrompt(token_ids=prompt),
        sampling=Sampling(temperature=0.0),
        max_tokens=NUM_DRAWN,
        ignore_eos=True,
    )
    drawn = run_one(loaded.engine, request).ids
    assert len(drawn) == NUM_DRAWN
    rows = checkpoint.reference(prompt + drawn)[0][len(prompt) - 1 : -1]
    drawable = loaded.engine.intake.tokenizer.vocab_size
    rows[:, drawable:] = -np.inf  # never drawn: the tokenizer does not know them
    best = rows.argmax(axis=1)
    for at in np.flatnonzero(best != drawn):
        ours, theirs = float(rows[at, drawn[at]]), float(rows[at, best[at]])
        said = f"token {at}: drawn {drawn[at]} with {ours:.5f}, transformers' best is {best[at]} with {theirs:.5f}"
        assert theirs - ours < NEAR_TIE, said
    assert np.count_nonzero(best != drawn) <= 1, (drawn, best)
