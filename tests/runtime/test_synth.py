"""Random checkpoints: the published layout, a working tokenizer, equal bytes for equal seeds, values that a model can live with."""

import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import Qwen3_5ForCausalLM
from transformers.utils import logging

from shoal.runtime.batch import Batch, Row
from shoal.runtime.cache import HybridCache
from shoal.runtime.config import EngineOptions, load_generation_defaults, load_model_config
from shoal.runtime.errors import ConfigInvalid, OptionInvalid
from shoal.runtime.model import HybridModel
from shoal.runtime.plan import plan_memory
from shoal.runtime.safetensors_file import read_header
from shoal.runtime.sizes import published_config
from shoal.runtime.synth import MAX_SHARD_BYTES, shards_of, size_named, synthesise, with_layers
from shoal.runtime.synth_tokenizer import make_tokenizer, place_added_tokens
from shoal.runtime.synth_values import ValueSource, bf16_bits
from shoal.runtime.tensors import TensorSpec, published_tensors

torch.set_num_threads(1)
logging.set_verbosity_error()

SHAPE = {
    "model_type": "qwen3_5_text",
    "vocab_size": 400,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "max_position_embeddings": 512,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.5,
        "mrope_section": [3, 2, 1],
    },
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    out = tmp_path_factory.mktemp("synth") / "model"
    synthesise(SHAPE, out, seed=5)
    return out


def forward(directory, ids):
    config = load_model_config(directory)
    options = EngineOptions(parallel=1, context=256)
    model = HybridModel.load(directory, config, options)
    plan = plan_memory(config, options)
    row = Row(len(ids), 0, tuple(range(plan.num_blocks)), 0)
    return model.forward(Batch(ids, [row], list(range(len(ids)))), HybridCache.allocate(config, plan))


def test_an_independent_library_loads_it_and_computes_the_same(directory):
    ids = list(range(0, 390, 3))
    theirs = Qwen3_5ForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        want = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(forward(directory, ids), want, rtol=1e-3, atol=2e-4)


def test_logits_have_favourites_and_vary(directory):
    logits = forward(directory, list(range(100)))
    assert torch.isfinite(logits).all()
    assert 0.5 < logits.std() < 8
    assert len(set(logits.argmax(-1).tolist())) > 20


def test_the_same_seed_gives_the_same_bytes(directory, tmp_path):
    synthesise(SHAPE, tmp_path / "same", seed=5)
    synthesise(SHAPE, tmp_path / "other", seed=6)
    names = sorted(path.name for path in directory.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "same").iterdir())
    for name in names:
        assert (directory / name).read_bytes() == (tmp_path / "same" / name).read_bytes(), name
    assert (directory / "model.safetensors").read_bytes() != (tmp_path / "other" / "model.safetensors").read_bytes()


def test_a_published_shape_keeps_names_dtypes_and_what_is_skipped(tmp_path):
    """0.8B's own config with small dims: every published name and dtype, vision tower and MTP block included."""
    values = published_config("0.8B")
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "vocab_size": 320, "head_dim": 16}
    text = {**values["text_config"], **small, "layer_types": None, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    vision = {**values["vision_config"], "depth": 1, "hidden_size": 16, "intermediate_size": 16, "out_hidden_size": 32}
    synthesise({**values, "text_config": text, "vision_config": vision}, tmp_path / "model")
    config = load_model_config(tmp_path / "model")
    header = read_header(tmp_path / "model" / "model.safetensors")
    assert {name: (e.dtype, e.shape) for name, e in header.tensors.items()} == {
        name: (spec.dtype, spec.shape) for name, spec in published_tensors(config).items()
    }
    assert "lm_head.weight" not in header.tensors
    model = HybridModel.load(tmp_path / "model", config, EngineOptions())
    assert model.skipped == {"visual": 12 + 9, "mtp": 15}


def test_tensors_are_dealt_to_shards_in_order():
    specs = {f"t{i}": TensorSpec((100, 100)) for i in range(10)}
    shards = shards_of(specs, 64 * 1024)
    assert [len(shard) for shard in shards] == [3, 3, 3, 1]
    assert list(dict(item for shard in shards for item in shard.items())) == list(specs)
    assert len(shards_of({"big": TensorSpec((2**20, 2**12))}, MAX_SHARD_BYTES)) == 1


def test_layers_are_cut_and_continued_by_the_pattern():
    values = published_config("4B")
    assert with_layers(values, 3)["text_config"]["layer_types"] == ["linear_attention"] * 3
    longer = with_layers(values, 38)["text_config"]
    assert longer["num_hidden_layers"] == len(longer["layer_types"]) == 38
    assert longer["layer_types"][35] == "full_attention" and longer["layer_types"].count("full_attention") == 9
    assert values["text_config"]["num_hidden_layers"] == 32
    with pytest.raises(OptionInvalid, match="layers"):
        with_layers(values, 0)


@pytest.mark.parametrize("name", ["0.8B", "0.8b", "qwen3.5-0.8b", "Qwen/Qwen3.5-0.8B"])
def test_sizes_by_any_of_their_names(name):
    assert size_named(name) == "0.8B"
    with pytest.raises(OptionInvalid, match="9B"):
        size_named("7B")


def test_nothing_is_overwritten_and_nothing_half_written_is_left(directory, tmp_path):
    with pytest.raises(OptionInvalid, match="there already"):
        synthesise(SHAPE, directory)
    with pytest.raises(ConfigInvalid, match="hidden_size"):
        synthesise({**SHAPE, "hidden_size": 0}, tmp_path / "x")

    class Stop(Exception):
        pass

    def stop(done, total):
        raise Stop

    with pytest.raises(Stop):
        synthesise(SHAPE, tmp_path / "x", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_covers_every_byte_and_parses_control_tokens(directory):
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    config = load_model_config(directory)
    text = "Hello, wörld! 12345\n\t漢字 🐟 \u0000\x7f"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text and ids == list(text.encode())
    turn = tokenizer.encode("<|im_start|>user\nhi<|im_end|>").ids
    assert turn[0] == tokenizer.token_to_id("<|im_start|>") and turn[-1] == tokenizer.token_to_id("<|im_end|>")
    assert tokenizer.get_vocab_size() == config.vocab_size
    assert len({tokenizer.id_to_token(i) for i in range(config.vocab_size)}) == config.vocab_size
    filler = tokenizer.id_to_token(300)
    assert tokenizer.encode(filler).ids == list(filler.encode())  # text never becomes a filler
    assert tokenizer.decode([300]) == filler


def test_stop_ids_are_the_tokenizers(directory):
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    defaults = load_generation_defaults(directory, load_model_config(directory))
    assert set(defaults.stop_ids) == {tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")}
    assert not defaults.from_file


def test_published_ids_where_they_fit_and_the_needed_ones_where_not():
    assert place_added_tokens(248320)["<|im_end|>"] == 248046
    at_the_end = place_added_tokens(1000)
    assert at_the_end["<|endoftext|>"] == 967 and at_the_end["<|audio_pad|>"] == 999
    few = place_added_tokens(262)
    assert list(few) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<think>", "</think>"]
    assert sorted(few.values()) == list(range(256, 262))
    with pytest.raises(ConfigInvalid, match="259"):
        place_added_tokens(258)
    assert len(make_tokenizer(259, 10).tokenizer["model"]["vocab"]) == 256


def test_the_small_template_is_the_small_sizes(tmp_path):
    synthesise(SHAPE, tmp_path / "small", small_template=True)
    synthesise(SHAPE, tmp_path / "general")
    small, general = ((tmp_path / name / "chat_template.jinja").read_text() for name in ("small", "general"))
    assert small != general and small.split("enable_thinking")[0] == general.split("enable_thinking")[0]


def test_bf16_rounds_to_nearest_even():
    g = np.random.default_rng(0)
    values = np.concatenate([g.standard_normal(1000), [0.0, -0.0, 1.00390625, 1.01171875, 3e38]]).astype(np.float32)
    want = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(bf16_bits(values), want)


@pytest.mark.parametrize("shape", [(300, 400), (40, 50)])
def test_drawn_values_are_normal_with_the_spread_of_their_fan_in(shape):
    spec = TensorSpec(shape)
    raw = b"".join(bytes(piece) for piece in ValueSource(0).pieces("model.layers.0.mlp.up_proj.weight", spec))
    values = torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).float() * math.sqrt(shape[1])
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.05
    assert abs((values.abs() < 0.6745).float().mean() - 0.5) < 0.05  # half of a normal sample


def test_config_json_is_what_was_given(directory):
    written = json.loads((directory / "config.json").read_text())
    assert {key: written[key] for key in SHAPE} == SHAPE
