"""`shoal model score`, `synth` and `show` from the command line, the scores against transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file
from transformers import Qwen3_5ForCausalLM
from transformers.utils import logging

from shoal.runtime.convert import convert_directory
from shoal.runtime.errors import OptionInvalid
from shoal.runtime.model_cli import score, show, synth
from shoal.runtime.score import cut_points

torch.set_num_threads(1)
logging.set_verbosity_error()

SHAPE = {
    "model_type": "qwen3_5_text",
    "vocab_size": 320,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 3,
    "max_position_embeddings": 256,
}
IDS = [(7 * i * i + 3) % 320 for i in range(150)]


def invoke(command, *args):
    return CliRunner().invoke(command, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    (folder / "shape.json").write_text(json.dumps(SHAPE))
    result = invoke(synth, "--config", folder / "shape.json", "--seed", 3, "--out", folder / "model", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["num_files"] == 1
    return folder / "model"


@pytest.fixture(scope="module")
def ids_file(model):
    path = model.parent / "ids.json"
    path.write_text(json.dumps(IDS))
    return path


def scored(model, ids_file, out, *options):
    result = invoke(score, model, "--ids", ids_file, "--out", out, *options)
    assert result.exit_code == 0, result.output
    return load_file(out)


def test_scores_equal_the_reference(model, ids_file, tmp_path):
    got = scored(model, ids_file, tmp_path / "o.safetensors")
    theirs = Qwen3_5ForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        out = theirs(torch.tensor([IDS]), use_cache=True)
    want = {"logits": out.logits[0]}
    for i, layer in enumerate(out.past_key_values.layers):
        if SHAPE["layer_types"][i] == "full_attention":
            want |= {f"k.{i}": layer.keys[0].transpose(0, 1), f"v.{i}": layer.values[0].transpose(0, 1)}
        else:
            state, columns = layer.recurrent_states, layer.conv_states
            if isinstance(state, dict):
                state, columns = state[0], columns[0]
            want |= {f"state.{i}": state[0], f"conv.{i}": columns[0][:, -2:]}
    assert set(got) == set(want)
    for name, tensor in want.items():
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], tensor.numpy(), rtol=1e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("splits", ["63,64", "1", "64,63,63", "149,150"])
def test_splits_change_rounding_only(model, ids_file, tmp_path, splits):
    whole = scored(model, ids_file, tmp_path / "whole.safetensors")
    split = scored(model, ids_file, tmp_path / "split.safetensors", "--split", splits)
    assert set(split) == set(whole)
    for name in whole:
        np.testing.assert_allclose(split[name], whole[name], rtol=1e-3, atol=2e-4, err_msg=name)


def test_a_sequence_shorter_than_the_convolution(model, tmp_path):
    (tmp_path / "ids.json").write_text("[5]")
    got = scored(model, tmp_path / "ids.json", tmp_path / "o.safetensors")
    assert got["logits"].shape == (1, 320) and got["k.1"].shape == (1, 2, 24)
    assert got["conv.0"].shape == (2 * 16 + 72, 2)
    assert not got["conv.0"][:, 0].any() and got["conv.0"][:, 1].any()


def test_bf16_is_another_arithmetic_of_the_same_model(model, ids_file, tmp_path):
    f32 = scored(model, ids_file, tmp_path / "f32.safetensors")
    bf16 = scored(model, ids_file, tmp_path / "bf16.safetensors", "--dtype", "bf16")
    error = np.abs(bf16["logits"] - f32["logits"]).mean() / f32["logits"].std()
    assert 1e-5 < error < 0.05


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "[1, 2", "[1.0]", "[true]", '["1"]', "[-1]", "[320]", "[[1]]", "[" + "9" * 5000 + "]", "\xff"],
)
def test_bad_ids_are_one_line_and_leave_nothing(model, tmp_path, text):
    (tmp_path / "ids.json").write_text(text, encoding="latin-1")
    result = invoke(score, model, "--ids", tmp_path / "ids.json", "--out", tmp_path / "o.safetensors")
    assert result.exit_code == 1
    assert result.output.startswith("Error: ids.json") and result.output.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ids.json"]


def test_ids_beyond_the_context(model, tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps([1] * 257))
    result = invoke(score, model, "--ids", tmp_path / "ids.json", "--out", tmp_path / "o.safetensors")
    assert result.exit_code == 1 and "257 ids exceed the context of 256" in result.output


@pytest.mark.parametrize("split", ["0", "151", "a", "1,,x", "-1", ","])
def test_a_wrong_split_is_wrong_usage(model, ids_file, tmp_path, split):
    result = invoke(score, model, "--ids", ids_file, "--out", tmp_path / "o", "--split", split)
    assert result.exit_code == 2


def test_an_output_that_cannot_be_written(model, ids_file, tmp_path):
    result = invoke(score, model, "--ids", ids_file, "--out", tmp_path / "no" / "where.safetensors")
    assert result.exit_code == 1 and result.output.startswith("Error: ")


def test_cut_points():
    assert cut_points(150, [], 512) == [0, 150]
    assert cut_points(150, [64, 63, 63], 512) == [0, 63, 64, 150]
    assert cut_points(10, [9], 4) == [0, 4, 8, 9, 10]
    with pytest.raises(OptionInvalid):
        cut_points(10, [11], 4)


def test_show(model):
    result = invoke(show, model, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert (facts["num_tensors"], facts["num_trunk_tensors"], facts["skipped_tensors"]) == (56, 56, {})
    assert facts["bytes_by_dtype"]["BF16"] + facts["bytes_by_dtype"]["F32"] == facts["num_tensor_bytes"]
    assert facts["num_attention_layers"] == 1 and facts["planned_bytes"]["bf16"]["weights"] > 0
    assert "num parameters" in invoke(show, model).output


def test_show_of_a_converted_model(tmp_path):
    convert_directory(Path(__file__).parents[2] / "models" / "pocket", tmp_path / "converted", "int8")
    result = invoke(show, tmp_path / "converted", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert (facts["format"], facts["num_attention_layers"]) == ("int8", 1)
    assert list(facts["planned_bytes"]) == ["int8"]
    assert sum(facts["bytes_by_layout"].values()) == facts["num_tensor_bytes"] and facts["bytes_by_layout"]["int8"] > 0


def test_show_a_published_size_that_is_not_here(tmp_path):
    result = CliRunner().invoke(show, ["qwen3.5-9b", "--json"], env={"SHOAL_HOME": str(tmp_path)})
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert (facts["num_parameters"], facts["num_tensors"]) == (8_953_803_264, 775)
    result = CliRunner().invoke(show, ["nothing-like-it"], env={"SHOAL_HOME": str(tmp_path)})
    assert result.exit_code == 1 and "nothing-like-it" in result.output


def test_show_names_a_broken_tensor(model, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-3])
    result = invoke(show, broken)
    assert result.exit_code == 1 and result.output.startswith("Error: model.safetensors")


@pytest.mark.parametrize("args", [[], ["--size", "0.8B", "--config", "x.json"]])
def test_synth_wants_one_source_of_sizes(tmp_path, args):
    assert invoke(synth, *args, "--out", tmp_path / "x").exit_code == 2


def test_synth_of_an_unknown_size_or_a_bad_file(tmp_path):
    result = invoke(synth, "--size", "7B", "--out", tmp_path / "x")
    assert result.exit_code == 2 and "9B" in result.output
    (tmp_path / "bad.json").write_text("{")
    result = invoke(synth, "--config", tmp_path / "bad.json", "--out", tmp_path / "x")
    assert result.exit_code == 1 and "bad.json" in result.output
