"""Configs of every published size, flat and nested; wrong ones are refused by the key's name; defaults of sampling and stop ids."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.runtime.config import (
    ConfigInvalid,
    EngineOptions,
    ModelConfig,
    ModelLoadError,
    OptionInvalid,
    Unsupported,
    load_generation_defaults,
    load_model_config,
)
from shoal.runtime.generation_defaults import defaults_from
from shoal.runtime.sizes import SIZES, published_config

SMALL = {
    "model_type": "qwen3_5_text",
    "vocab_size": 300,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "eos_token_id": [7, 9],
}


def write(directory, **files):
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / f"{name}.json").write_text(text, encoding="utf-8")
    return directory


@pytest.mark.parametrize("size", SIZES)
def test_published_configs(size):
    config = ModelConfig.from_mapping(published_config(size))
    assert config.dropped_keys == ()
    assert config.tie_word_embeddings == (size in ("0.8B", "2B", "4B"))
    assert (config.moe is not None) == ("-A" in size)
    assert config.attention_layers == tuple(range(3, config.num_layers, 4))
    assert (config.rope.rotary_dim, config.rope.theta, config.rope.sections) == (64, 1e7, (11, 11, 10))
    assert config.rope.axes.count(1) == 11 and config.rope.axes.count(2) == 10
    assert config.eos_token_ids == (248044,)


def test_a_flat_config_with_defaults():
    config = ModelConfig.from_mapping(SMALL)
    assert config.layer_types == ("linear_attention",) * 3 + ("full_attention", "linear_attention")
    assert (config.query_dim, config.key_value_dim, config.conv_dim) == (64, 32, 2 * 16 + 72)
    assert config.eos_token_ids == (7, 9)
    assert config.rope.inverse_frequencies == (1.0, 10_000 ** (-1 / 2))
    assert config.mtp_num_hidden_layers == 0 and config.vision is None and not config.tie_word_embeddings


def test_unknown_keys_are_dropped_and_told():
    config = ModelConfig.from_mapping(
        {"model_type": "qwen3_5", "text_config": SMALL | {"novel": 1}, "fresh": {"a": 1}, "use_cache": True}
    )
    assert config.dropped_keys == ("fresh", "text_config.novel")


def test_the_outer_tie_flag_stands():
    nested = {"model_type": "qwen3_5", "text_config": SMALL | {"tie_word_embeddings": False}}
    assert ModelConfig.from_mapping(nested | {"tie_word_embeddings": True}).tie_word_embeddings
    assert not ModelConfig.from_mapping(nested).tie_word_embeddings


WRONG = {
    "vocab_size": [0, -1, "300", 1.5, True, [], 2**40],
    "hidden_size": [0, {}],
    "intermediate_size": [-3],
    "num_hidden_layers": [0, 10**6],
    "num_attention_heads": [3],
    "num_key_value_heads": [0, 3],
    "head_dim": [3, 1],
    "linear_num_value_heads": [5],
    "linear_conv_kernel_dim": [0, 1000],
    "rms_norm_eps": [0, -1e-6, "small", math.nan, math.inf],
    "eos_token_id": [300, -1, "x", [1, 400], [True]],
    "layer_types": ["full_attention", ["full_attention"], ["sliding"] * 5, [1] * 5],
    "hidden_act": ["gelu"],
    "attention_bias": [True, "yes"],
    "attn_output_gate": [False],
    "mlp_only_layers": [[1]],
    "tie_word_embeddings": [1],
    "rope_parameters": [[], {"rope_theta": 0}, {"mrope_section": [1, 2]}, {"partial_rotary_factor": 2.0}],
    "max_position_embeddings": [0],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_by_its_key(key, value):
    with pytest.raises(ConfigInvalid, match=r"config\.json") as caught:
        ModelConfig.from_mapping(SMALL | {key: value})
    related = {"num_key_value_heads": "num_attention_heads", "rope_parameters": "rope|partial|mrope"}
    assert any(word in str(caught.value) for word in (key, *related.get(key, key).split("|")))


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_a_missing_size_is_refused_by_its_key(key):
    with pytest.raises(ConfigInvalid, match=f"{key} is missing"):
        ModelConfig.from_mapping({k: v for k, v in SMALL.items() if k != key})


def test_another_family_and_other_formats_are_unsupported():
    with pytest.raises(ConfigInvalid, match="'llama'"):
        ModelConfig.from_mapping(SMALL | {"model_type": "llama"})
    with pytest.raises(Unsupported, match="quantization_config"):
        ModelConfig.from_mapping(SMALL | {"quantization_config": {"quant_method": "fp8"}})
    with pytest.raises(Unsupported, match="longrope"):
        ModelConfig.from_mapping(SMALL | {"rope_parameters": {"rope_type": "longrope"}})


@given(
    st.dictionaries(
        st.sampled_from(sorted(WRONG)),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        ),
        max_size=3,
    )
)
def test_any_json_is_a_config_or_a_typed_error(changes):
    try:
        config = ModelConfig.from_mapping(SMALL | changes)
    except ModelLoadError:
        return
    assert config.num_layers >= 1 and config.conv_dim > 0


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": ' + "9" * 5000 + "}", "[" * 100_000])
def test_a_file_that_is_no_json_object(tmp_path, text):
    with pytest.raises(ConfigInvalid, match=r"config\.json"):
        load_model_config(write(tmp_path, config=text))


def test_no_file_and_no_directory(tmp_path):
    with pytest.raises(ConfigInvalid, match="no such file"):
        load_model_config(tmp_path)
    with pytest.raises(ConfigInvalid, match="not a directory"):
        load_model_config(tmp_path / "nowhere")
    (tmp_path / "config.json").write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(ConfigInvalid, match="UTF-8"):
        load_model_config(tmp_path)


def test_yarn_stretches_low_frequencies_only():
    """The published recipe for four times the context: dims below 14 keep theirs, from 22 on a quarter, a ramp between."""
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "factor": 4.0,
        "original_max_position_embeddings": 262144,
    }
    config = ModelConfig.from_mapping(SMALL | {"head_dim": 256, "rope_parameters": rope})
    plain = [1e7 ** (-2 * j / 64) for j in range(32)]
    got = [a / b for a, b in zip(config.rope.inverse_frequencies, plain, strict=True)]
    want = [1 - 0.75 * min(max((j - 14) / 8, 0), 1) for j in range(32)]
    assert got == pytest.approx(want)
    assert config.rope.amplitude == pytest.approx(1.1386, abs=1e-4)


@pytest.mark.parametrize(
    ("size", "temperature", "top_p", "presence"),
    [("0.8B", 1.0, 1.0, 2.0), ("9B", 1.0, 0.95, 1.5), ("397B-A17B", 0.6, 0.95, 0.0)],
)
def test_cards_stand_in_for_a_missing_file(size, temperature, top_p, presence):
    config = ModelConfig.from_mapping(published_config(size))
    defaults = defaults_from(config, None, 248046)
    assert (defaults.temperature, defaults.top_p, defaults.top_k) == (temperature, top_p, 20)
    assert (defaults.presence_penalty, defaults.from_file) == (presence, False)
    assert set(defaults.stop_ids) == {248044, 248046}


def test_stop_ids_come_from_every_file(tmp_path):
    added = {"11": {"content": "<|im_end|>"}, "12": {"content": "<|endoftext|>"}}
    write(
        tmp_path,
        config=SMALL,
        generation_config={"eos_token_id": [8, 9], "temperature": 0.3, "top_k": 5},
        tokenizer_config={"eos_token": "<|im_end|>", "added_tokens_decoder": added},
    )
    defaults = load_generation_defaults(tmp_path, load_model_config(tmp_path))
    assert set(defaults.stop_ids) == {7, 8, 9, 11}
    assert (defaults.temperature, defaults.top_k, defaults.top_p, defaults.from_file) == (0.3, 5, 1.0, True)


def test_the_eos_token_is_found_in_tokenizer_json_too(tmp_path):
    write(
        tmp_path,
        config=SMALL,
        tokenizer_config={"eos_token": {"content": "<end>"}},
        tokenizer={"added_tokens": [{"id": 21, "content": "<end>"}]},
    )
    assert 21 in load_generation_defaults(tmp_path, load_model_config(tmp_path)).stop_ids


def test_a_greedy_checkpoint_is_greedy():
    config = ModelConfig.from_mapping(SMALL)
    assert defaults_from(config, {"do_sample": False, "temperature": 0.7}, None).temperature == 0.0


@pytest.mark.parametrize(
    "generation",
    [{"temperature": "hot"}, {"top_p": 2}, {"top_k": -1}, {"eos_token_id": 300}, {"min_p": math.nan, "top_k": 1}],
)
def test_a_wrong_generation_config_is_refused(generation):
    with pytest.raises(ConfigInvalid, match="generation_config"):
        defaults_from(ModelConfig.from_mapping(SMALL), generation, None)


def test_engine_options_round_trip():
    options = EngineOptions.from_mapping({"dtype": "bf16", "context": 1000, "memory": 2**32})
    assert EngineOptions.from_mapping(options.to_mapping()) == options
    assert (options.parallel, options.max_batched_tokens) == (16, 512)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"backend": "gpu"}, "reference"),
        ({"dtype": "f16"}, "bf16"),
        ({"format": "int3"}, "int4"),
        ({"kv_format": "int4"}, "bf16"),
        ({"isa": "sse2"}, "auto"),
        ({"backend": "reference", "format": "int4"}, "format: 'int4' is of the back end 'cpu'"),
        ({"backend": "reference", "kv_format": "int8"}, "kv_format"),
        ({"backend": "reference", "isa": "avx2"}, "isa"),
        ({"backend": "cpu", "dtype": "bf16"}, "dtype: 'bf16' is of the back end 'reference'"),
        ({"backend": "cpu", "block_tokens": 16}, "block_tokens"),
        ({"format": "int8", "dtype": "bf16"}, "dtype"),
        ({"context": 0}, "context"),
        ({"parallel": "8"}, "parallel"),
        ({"parallel": True}, "parallel"),
        ({"threads": -1}, "threads"),
        ({"memory": 1.5}, "memory"),
        ({"max_batched_tokens": 4, "parallel": 8}, "max_batched_tokens"),
        ({"wrong": 1}, "there is no such option"),
    ],
)
def test_a_wrong_option_says_what_there_is(values, named):
    with pytest.raises(OptionInvalid, match=named) as caught:
        EngineOptions.from_mapping(values)
    assert caught.value.option in values
