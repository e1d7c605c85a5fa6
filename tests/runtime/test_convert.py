"""Published checkpoints into converted models: every value where the engine looks for it, interruptions, fallbacks, refusals."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from shoal.kernels.cpu.engine import expected_tensors
from shoal.kernels.cpu.quantise import dequantise, packed_bytes
from shoal.runtime.config import load_model_config
from shoal.runtime.container import is_converted, open_container, verify_container
from shoal.runtime.container_tensors import container_tensors
from shoal.runtime.convert import Calibration, convert_directory, synthetic_digest
from shoal.runtime.convert_cli import convert as convert_command
from shoal.runtime.convert_probe import MatrixInputs
from shoal.runtime.digest import source_digest
from shoal.runtime.errors import CheckpointCorrupt, OptionInvalid, TensorNotFinite, Unsupported
from shoal.runtime.model_config import ModelConfig
from shoal.runtime.native_backend import engine_shape
from shoal.runtime.safetensors_file import read_header
from shoal.runtime.synth import synthesise
from shoal.runtime.tensor_rows import NUMPY_DTYPES, to_float32

SHAPE = {
    "model_type": "qwen3_5_text",
    "vocab_size": 400,
    "hidden_size": 48,
    "intermediate_size": 72,  # no multiple of 16
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "max_position_embeddings": 512,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.5,
        "mrope_section": [3, 3, 2],
    },
}
FORMATS = ("bf16", "int8", "int4")
# Relative errors of Gaussian matrices whose rows fill 48 to 128 of a block's 256 columns, with room.
LARGEST_ERROR = {"bf16": 0.0, "int8": 0.008, "int4": 0.08}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    out = tmp_path_factory.mktemp("published") / "model"
    synthesise(SHAPE, out, seed=5)
    return out


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    return {format: convert_directory(published, folder / format, format).directory for format in FORMATS}


def values_of(directory):
    """Every published tensor by relative name, as f32."""
    path = directory / "model.safetensors"
    found = {}
    for name, entry in read_header(path).tensors.items():
        raw = np.fromfile(path, NUMPY_DTYPES[entry.dtype], np.prod(entry.shape, dtype=int), offset=entry.offset)
        found[name.removeprefix("model.")] = to_float32(raw, entry.dtype).reshape(entry.shape).copy()
    return found


def held_values(directory, name):
    container = open_container(directory)
    tensor = container.tensors[name]
    raw = np.fromfile(container.path, np.uint8, tensor.num_bytes, offset=tensor.offset)
    if tensor.layout == "f32":
        return raw.view(np.float32)[: tensor.rows * tensor.cols].reshape(tensor.rows, tensor.cols)
    used = raw[: packed_bytes(tensor.layout, tensor.rows, tensor.cols)]
    return dequantise(tensor.layout, used, tensor.rows, tensor.cols)


def expected_values(published, config):
    """What each tensor of the converted model stands for, from the published ones."""
    w = values_of(published)
    wanted = {"embed.table": w["embed_tokens.weight"], "norm": 1 + w["norm.weight"]}
    head = w["lm_head.weight"]
    wanted |= {"head.table": head, "head.scan": head}
    for i, kind in enumerate(config.layer_types):
        layer = {name.removeprefix(f"layers.{i}."): w[name] for name in w if name.startswith(f"layers.{i}.")}
        gate, up = (layer[f"mlp.{part}_proj.weight"] for part in ("gate", "up"))
        gate, up = (np.pad(part, ((0, 8), (0, 0))) for part in (gate, up))  # 72 rows up to 80
        both = np.stack([gate.reshape(5, 16, -1), up.reshape(5, 16, -1)], axis=1).reshape(160, -1)
        found = {
            "input_norm": 1 + layer["input_layernorm.weight"],
            "post_norm": 1 + layer["post_attention_layernorm.weight"],
            "gate_up": both,
            "down": layer["mlp.down_proj.weight"],
        }
        if kind == "full_attention":
            found |= {
                "qkv": np.concatenate([layer[f"self_attn.{part}_proj.weight"] for part in "qkv"]),
                "q_norm": 1 + layer["self_attn.q_norm.weight"],
                "k_norm": 1 + layer["self_attn.k_norm.weight"],
                "out_proj": layer["self_attn.o_proj.weight"],
            }
        else:
            found |= {
                "in_proj": np.concatenate([layer[f"linear_attn.in_proj_{part}.weight"] for part in ("qkv", "z")]),
                "gates": np.concatenate([layer[f"linear_attn.in_proj_{part}.weight"] for part in "ba"]),
                "conv": layer["linear_attn.conv1d.weight"],
                "decay": -np.exp(layer["linear_attn.A_log"]),
                "dt_bias": layer["linear_attn.dt_bias"],
                "mixer_norm": layer["linear_attn.norm.weight"],
                "out_proj": layer["linear_attn.out_proj.weight"],
            }
        wanted |= {f"layers.{i}.{name}": values for name, values in found.items()}
    return wanted


@pytest.mark.parametrize("format", FORMATS)
def test_every_value_is_where_it_belongs(published, converted, format):
    config = load_model_config(published)
    container = verify_container(converted[format])
    specs = container_tensors(config, format)
    assert list(container.tensors) == list(specs)
    assert container.format == format and container.source_digest == source_digest(published)
    wanted = expected_values(published, config)
    assert wanted.keys() | {"head.sigma"} == specs.keys()
    for name, values in wanted.items():
        held, values = held_values(converted[format], name), values.reshape(specs[name].rows, specs[name].cols)
        layout = container.tensors[name].layout
        if layout in ("bf16", "rows16"):
            assert np.array_equal(held, values), name
        elif layout == "f32":
            np.testing.assert_allclose(held, values, rtol=1e-6)  # exp of another library
        else:
            error = np.sqrt(((held - values) ** 2).sum() / (values**2).sum())
            assert error <= LARGEST_ERROR["int8" if layout == "rows8" else layout] + 0.001, name
    sigma, scan = held_values(converted[format], "head.sigma").ravel(), held_values(converted[format], "head.scan")
    table = held_values(converted[format], "head.table")
    np.testing.assert_allclose(sigma, np.sqrt(((table - scan) ** 2).mean(axis=1)), rtol=1e-4)


def test_tied_heads_have_one_table(tmp_path):
    synthesise({**SHAPE, "tie_word_embeddings": True}, tmp_path / "model")
    report = convert_directory(tmp_path / "model", tmp_path / "out", "int4")
    assert "head.table" not in {tensor.name for tensor in report.tensors}
    assert {"embed.table", "head.scan", "head.sigma"} <= open_container(tmp_path / "out").tensors.keys()


def test_side_files_are_copied(published, converted):
    names = {path.name for path in published.iterdir() if path.suffix != ".safetensors"}
    assert names | {"model.safetensors"} == {path.name for path in converted["int4"].iterdir()}
    for name in names:
        assert (converted["int4"] / name).read_bytes() == (published / name).read_bytes()
    assert load_model_config(converted["int4"]) == load_model_config(published)


def test_any_float_type_gives_the_same_file(published, converted, tmp_path):
    """The same values in f32, some of them in f16, beside bf16."""
    shutil.copytree(published, tmp_path / "wide")
    tensors = {f"model.{name}" if name != "lm_head.weight" else name: w for name, w in values_of(published).items()}
    half = {name: w.astype(np.float16) if "z.weight" in name or "up_proj" in name else w for name, w in tensors.items()}
    exact = {name: w for name, w in half.items() if w.dtype == np.float16}
    for name, w in exact.items():  # what binary16 cannot hold stays f32
        if not np.array_equal(w.astype(np.float32), tensors[name]):
            half[name] = tensors[name]
    save_file(half, tmp_path / "wide" / "model.safetensors")
    convert_directory(tmp_path / "wide", tmp_path / "out", "int4", threads=2)
    assert digests(tmp_path / "out") == digests(converted["int4"])


def digests(directory):
    return {name: tensor.sha256 for name, tensor in open_container(directory).tensors.items()}


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_synth_writes_what_conversion_would(published, converted, tmp_path, format):
    summary = synthesise(SHAPE, tmp_path / "out", seed=5, format=format)
    assert digests(tmp_path / "out") == digests(converted[format])
    assert summary.num_files == 1 and summary.num_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (published / "tokenizer.json").read_bytes()
    content = json.loads((published / "config.json").read_text())
    assert open_container(tmp_path / "out").source_digest == synthetic_digest(content, 5)


KILLED = """
import os, signal, sys
from pathlib import Path
from shoal.runtime.container import ContainerWriter
from shoal.runtime.convert import convert_directory

end = ContainerWriter.end
def end_or_die(self, facts):
    if self._name == "layers.2.gate_up":
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    end(self, facts)
ContainerWriter.end = end_or_die
convert_directory(Path(sys.argv[1]), Path(sys.argv[2]), "int4")
"""


def test_a_killed_conversion_is_continued(published, converted, tmp_path):
    run = subprocess.run([sys.executable, "-P", "-c", KILLED, published, tmp_path / "out"], capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert not (tmp_path / "out").exists()
    report = convert_directory(published, tmp_path / "out", "int4")
    names = list(container_tensors(load_model_config(published), "int4"))
    assert report.num_resumed == names.index("layers.2.gate_up")
    assert digests(tmp_path / "out") == digests(converted["int4"])
    assert [tensor.name for tensor in report.tensors] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_after_a_kill_between_the_head_and_its_errors(published, converted, tmp_path):
    script = KILLED.replace("layers.2.gate_up", "head.sigma")
    subprocess.run([sys.executable, "-P", "-c", script, published, tmp_path / "out"], capture_output=True, check=False)
    convert_directory(published, tmp_path / "out", "int4")
    assert digests(tmp_path / "out") == digests(converted["int4"])


def test_two_at_once_are_one_after_the_other(published, tmp_path):
    script = "import sys; from pathlib import Path; from shoal.runtime.convert import convert_directory as c\n"
    script += "c(Path(sys.argv[1]), Path(sys.argv[2]), 'int8')"
    command = [sys.executable, "-P", "-c", script, str(published), str(tmp_path / "out")]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    codes = sorted(run.wait(timeout=60) for run in runs)
    assert codes == [0, 1]  # the second finds it there
    assert sum(b"OptionInvalid" in run.stderr.read() for run in runs) == 1
    for run in runs:
        run.stderr.close()
    verify_container(tmp_path / "out")


def test_conversion_needs_no_torch(published, tmp_path):
    script = "import sys; sys.modules['torch'] = None; from pathlib import Path\n"
    script += (
        "from shoal.runtime.convert import convert_directory as c; c(Path(sys.argv[1]), Path(sys.argv[2]), 'int4')"
    )
    subprocess.run([sys.executable, "-P", "-c", script, published, tmp_path / "out"], check=True)


def damaged(published, target, name, change):
    """A copy of the checkpoint in f32 with one tensor changed."""
    shutil.copytree(published, target)
    tensors = {f"model.{key}" if key != "lm_head.weight" else key: w for key, w in values_of(published).items()}
    change(tensors[name])
    save_file(tensors, target / "model.safetensors")
    return target


@pytest.mark.parametrize("name", ["mlp.up_proj.weight", "linear_attn.A_log", "linear_attn.in_proj_a.weight"])
@pytest.mark.parametrize("format", ["bf16", "int4"])
def test_weights_that_are_not_finite_are_refused(published, tmp_path, name, format):
    def spoil(w):
        w.flat[-1] = np.nan

    source = damaged(published, tmp_path / "bad", f"model.layers.1.{name}", spoil)
    with pytest.raises(TensorNotFinite, match=name.replace(".", r"\.")):
        convert_directory(source, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_a_truncated_source_is_refused(published, tmp_path):
    shutil.copytree(published, tmp_path / "short")
    with (tmp_path / "short" / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    with pytest.raises(CheckpointCorrupt):
        convert_directory(tmp_path / "short", tmp_path / "out", "int4")


def test_refusals(published, converted, tmp_path):
    with pytest.raises(Unsupported, match="converted model already"):
        convert_directory(converted["int4"], tmp_path / "out", "int8")
    with pytest.raises(OptionInvalid, match="there already"):
        convert_directory(published, converted["int4"], "int8")
    with pytest.raises(OptionInvalid, match="int3"):
        convert_directory(published, tmp_path / "out", "int3")
    synthesise({**SHAPE, "linear_conv_kernel_dim": 3}, tmp_path / "taps")
    with pytest.raises(Unsupported, match="linear_conv_kernel_dim"):
        convert_directory(tmp_path / "taps", tmp_path / "out", "int4")


def test_an_outlier_channel_keeps_its_matrix_in_bf16(published, tmp_path):
    """Large activations that meet small weights: they take the range of a block of activations, and the weights that of a group."""

    def plant(w):
        w[:, 5] /= 3000

    source = damaged(published, tmp_path / "outlier", "model.layers.1.mlp.down_proj.weight", plant)
    draw = np.random.default_rng(1)
    samples = draw.standard_normal((32, 72)).astype(np.float32)
    samples[:, 5] *= 3000
    square = (samples**2).mean(axis=0)
    inputs = {"layers.1.down": MatrixInputs(square / square.mean(), samples)}
    report = convert_directory(source, tmp_path / "out", "int4", calibration=Calibration("1" * 64, inputs))
    assert report.fallbacks == ("layers.1.down",)
    assert open_container(tmp_path / "out").tensors["layers.1.down"].layout == "bf16"
    down = next(tensor for tensor in report.tensors if tensor.name == "layers.1.down")
    assert down.layout == "bf16" and down.error < 0.002 and down.output_error > 0.15
    plain = convert_directory(source, tmp_path / "plain", "int4")
    assert plain.fallbacks == ()
    assert digests(tmp_path / "plain")["layers.0.down"] == digests(tmp_path / "out")["layers.0.down"]


def test_the_threshold_is_an_option(published, tmp_path):
    report = convert_directory(published, tmp_path / "out", "int8", fallback_threshold=1e-9)
    layouts = {tensor.layout for tensor in open_container(tmp_path / "out").tensors.values()}
    assert layouts == {"f32", "rows8", "bf16", "int4"}  # int4: the head's first pass
    assert len(report.fallbacks) == 16
    again = convert_directory(published, tmp_path / "again", "int8", fallback_threshold=1.0)
    assert again.fallbacks == ()


def test_the_command(published, tmp_path):
    runner = CliRunner()
    model = shutil.copytree(published, tmp_path / "model")
    shown = runner.invoke(convert_command, [str(model)])
    assert shown.exit_code == 0, shown.output
    assert is_converted(tmp_path / "model-int4") and "gate_up" in shown.output
    answer = runner.invoke(convert_command, [str(model), "--format", "int8", "--out", str(tmp_path / "o"), "--json"])
    facts = json.loads(answer.stdout)
    assert facts["format"] == "int8" and facts["num_bytes"] == (tmp_path / "o" / "model.safetensors").stat().st_size
    assert 0.005 < facts["groups"]["down"]["error"] < 0.01 < facts["groups"]["down"]["output_error"] < 0.05
    assert runner.invoke(convert_command, [str(model), "--out", str(tmp_path / "o")]).exit_code == 2
    wrong = runner.invoke(convert_command, [str(tmp_path / "o")])
    assert wrong.exit_code == 1 and "converted model already" in wrong.output


def test_progress_ends_at_the_whole(published, tmp_path):
    seen = []
    convert_directory(published, tmp_path / "out", "int4", progress=lambda done, total: seen.append((done, total)))
    assert len({total for _, total in seen}) == 1
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_the_engine_expects_these_tensors(format, tied):
    config = ModelConfig.from_mapping({**SHAPE, "tie_word_embeddings": tied})
    wanted = {t.name: (t.layout, t.rows, t.cols, t.num_bytes) for t in expected_tensors(engine_shape(config), format)}
    specs = container_tensors(config, format)
    assert wanted == {name: (spec.layout, spec.rows, spec.cols, spec.num_bytes) for name, spec in specs.items()}
