"""Directories in every published form load; everything else is refused with the tensor's and the file's name."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shoal.runtime.batch import Batch, Row
from shoal.runtime.cache import HybridCache
from shoal.runtime.checkpoint import INDEX_FILE, open_checkpoint
from shoal.runtime.config import EngineOptions, load_model_config
from shoal.runtime.errors import (
    CheckpointCorrupt,
    TensorDtype,
    TensorMissing,
    TensorNotFinite,
    TensorShape,
    UnexpectedTensor,
    Unsupported,
)
from shoal.runtime.model import HybridModel
from shoal.runtime.plan import plan_memory
from shoal.runtime.synth import synthesise

torch.set_num_threads(1)

TEXT = {
    "model_type": "qwen3_5_text",
    "vocab_size": 300,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "max_position_embeddings": 128,
    "mtp_num_hidden_layers": 1,
}
VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "in_channels": 3,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 16,
    "out_hidden_size": 24,
}
WHOLE = {
    "model_type": "qwen3_5",
    "text_config": TEXT,
    "vision_config": VISION,
    "tie_word_embeddings": False,
}
A_MATRIX = "model.language_model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    out = tmp_path_factory.mktemp("published") / "model"
    synthesise(WHOLE, out)
    return out


@pytest.fixture
def directory(published, tmp_path):
    return shutil.copytree(published, tmp_path / "model")


def tensors_of(directory):
    return load_file(directory / "model.safetensors")


def rewrite(directory, tensors, file="model.safetensors"):
    save_file(tensors, directory / file)


def logits(directory, dtype="f32"):
    config = load_model_config(directory)
    options = EngineOptions(context=32, parallel=1, dtype=dtype)
    model = HybridModel.load(directory, config, options)
    plan = plan_memory(config, options)
    ids = [3, 1, 4, 1, 5]
    row = Row(5, 0, tuple(range(plan.num_blocks)), 0)
    return model.forward(Batch(ids, [row], list(range(5))), HybridCache.allocate(config, plan, model.dtype))


def test_what_is_not_served_is_skipped_and_counted(published):
    config = load_model_config(published)
    model = HybridModel.load(published, config, EngineOptions())
    assert model.skipped == {"visual": 2 * 12 + 9, "mtp": 15}
    assert model.num_parameters == sum(
        value.numel() for name, value in tensors_of(published).items() if name.startswith(("model.l", "lm_head"))
    )


def test_shards_with_an_index_give_the_same(directory):
    want, tensors = logits(directory), tensors_of(directory)
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {f"model-{i}.safetensors": names[i::3] for i in range(3)}
    for file, share in shards.items():
        rewrite(directory, {name: tensors[name] for name in share}, file)
    assert torch.equal(logits(directory), want)  # without an index, every file counts
    weight_map = {name: file for file, share in shards.items() for name in share}
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    (directory / "stray.safetensors").write_bytes(b"an index says what counts")
    assert torch.equal(logits(directory), want)


def test_a_text_only_resave_gives_the_same(directory):
    want = logits(directory)
    text = {
        name.replace("model.language_model.", "model."): value
        for name, value in tensors_of(directory).items()
        if not name.startswith(("mtp.", "model.visual."))
    }
    rewrite(directory, text)
    (directory / "config.json").write_text(json.dumps(TEXT | {"tie_word_embeddings": False}))
    assert torch.equal(logits(directory), want)
    assert HybridModel.load(directory, load_model_config(directory), EngineOptions()).skipped == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_float_dtypes_load(directory, dtype):
    want = logits(directory)
    rewrite(directory, {name: value.to(dtype) for name, value in tensors_of(directory).items()})
    torch.testing.assert_close(logits(directory), want, rtol=1e-2, atol=1e-2)


def test_a_tied_head_is_the_embedding_whether_or_not_a_file_repeats_it(directory):
    tensors = tensors_of(directory)
    content = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(content | {"tie_word_embeddings": True}))
    with_head = logits(directory)
    assert HybridModel.load(directory, load_model_config(directory), EngineOptions()).skipped["tied_head"] == 1
    del tensors["lm_head.weight"]
    rewrite(directory, tensors)
    assert torch.equal(logits(directory), with_head)


def load(directory):
    return HybridModel.load(directory, load_model_config(directory), EngineOptions())


def test_a_missing_tensor(directory):
    tensors = tensors_of(directory)
    del tensors[A_MATRIX]
    rewrite(directory, tensors)
    with pytest.raises(TensorMissing, match="up_proj") as caught:
        load(directory)
    assert caught.value.tensor == A_MATRIX


def test_a_left_over_tensor(directory):
    rewrite(directory, tensors_of(directory) | {"model.language_model.layers.0.mlp.bias": torch.zeros(3)})
    with pytest.raises(UnexpectedTensor, match=r"mlp\.bias"):
        load(directory)


def test_a_layer_more_than_the_config_says_is_left_over(directory):
    content = json.loads((directory / "config.json").read_text())
    content["text_config"] |= {"num_hidden_layers": 1, "layer_types": ["linear_attention"]}
    (directory / "config.json").write_text(json.dumps(content))
    with pytest.raises(UnexpectedTensor, match=r"layers\.1\."):
        load(directory)


def test_a_transposed_tensor(directory):
    tensors = tensors_of(directory)
    rewrite(directory, tensors | {A_MATRIX: tensors[A_MATRIX].T.contiguous()})
    with pytest.raises(TensorShape, match=r"\[24, 32\].*\[32, 24\]"):
        load(directory)


def test_an_integer_tensor(directory):
    tensors = tensors_of(directory)
    rewrite(directory, tensors | {A_MATRIX: tensors[A_MATRIX].to(torch.int8)})
    with pytest.raises(TensorDtype, match="I8"):
        load(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_value_that_is_not_finite(directory, value, dtype):
    tensors = tensors_of(directory)
    poisoned = tensors[A_MATRIX].to(dtype).clone()
    poisoned[-1, -1] = value
    rewrite(directory, tensors | {A_MATRIX: poisoned})
    with pytest.raises(TensorNotFinite, match="up_proj"):
        load(directory)


def test_poison_in_what_is_skipped_is_none(directory):
    tensors = tensors_of(directory)
    tensors["mtp.fc.weight"].fill_(float("nan"))
    rewrite(directory, tensors)
    load(directory)


def test_the_same_tensor_in_two_files(directory):
    rewrite(directory, {A_MATRIX: tensors_of(directory)[A_MATRIX]}, "again.safetensors")
    with pytest.raises(CheckpointCorrupt, match=r"up_proj.*is in"):
        load(directory)


def test_a_truncated_file_is_found_before_anything_is_allocated(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointCorrupt, match=r"model\.safetensors"):
        open_checkpoint(directory, load_model_config(directory))


@pytest.mark.parametrize(
    "file",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        "",
        "a\\b.safetensors",
        "x.bin",
        7,
        "\0.safetensors",
    ],
)
def test_an_index_does_not_leave_its_directory(directory, file):
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": {A_MATRIX: file}}))
    with pytest.raises(CheckpointCorrupt):
        load(directory)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "\xff"])
def test_a_broken_index(directory, index):
    (directory / INDEX_FILE).write_text(index, encoding="latin-1")
    with pytest.raises(CheckpointCorrupt):
        load(directory)


def test_an_index_that_does_not_describe_its_files(directory):
    weight_map = dict.fromkeys(tensors_of(directory), "model.safetensors")
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map | {"more": "model.safetensors"}}))
    with pytest.raises(TensorMissing, match="more"):
        load(directory)
    del weight_map[A_MATRIX]
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UnexpectedTensor, match="up_proj"):
        load(directory)
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map | {A_MATRIX: "gone.safetensors"}}))
    with pytest.raises(CheckpointCorrupt, match="gone"):
        load(directory)


def test_pickled_weights_are_not_opened(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(Unsupported, match="pickled"):
        load(directory)


def test_no_weights_at_all(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointCorrupt, match="no safetensors"):
        load(directory)


def test_one_piece_of_reading_is_smaller_than_a_tensor(directory, tmp_path):
    """A tensor larger than the staging buffer arrives whole."""
    from shoal.runtime.checkpoint import TensorPlace
    from shoal.runtime.safetensors_file import read_header
    from shoal.runtime.weights import fill_tensor

    values = torch.arange(1000, dtype=torch.float32)
    save_file({"x": values}, tmp_path / "x.safetensors")
    place = TensorPlace(tmp_path / "x.safetensors", read_header(tmp_path / "x.safetensors").tensors["x"])
    target = torch.empty(1000)
    fill_tensor(target, place, "x", torch.empty(64, dtype=torch.uint8))
    np.testing.assert_array_equal(target.numpy(), values.numpy())
