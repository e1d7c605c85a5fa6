"""Published weights are converted once, again where they changed, and somewhere else where the home cannot be written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_driver import ask, run_one  # type: ignore[import-not-found]

from shoal.runtime.config import EngineOptions
from shoal.runtime.container import open_container
from shoal.runtime.errors import FormatMismatch, ModelLoadError
from shoal.runtime.loading import load_engine
from shoal.runtime.native_weights import FOLDER, served_weights
from shoal.runtime.ready_frame import ready_frame

OPTIONS = EngineOptions(backend="cpu", parallel=2, context=64, threads=1)


@pytest.fixture
def model(native_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(native_checkpoint, tmp_path / "model"))


@pytest.fixture
def lines() -> Iterator[list[str]]:
    yield []


def conversions(home: Path) -> set[str]:
    return {path.name for path in (home / FOLDER).iterdir() if path.is_dir() and not path.name.startswith(".")}


def test_a_published_directory_is_converted_once_for_each_format(model: Path, tmp_path: Path, lines: list[str]) -> None:
    home = tmp_path / "home"
    first = served_weights(model, "", "bf16", home, lines.append)
    assert first.container.format == "bf16"
    assert any("converting model to bf16" in line for line in lines)
    lines.clear()
    again = served_weights(model, "", "bf16", home, lines.append)
    assert again.container == first.container
    assert lines == []
    assert served_weights(model, "", "int4", home, lines.append).container.format == "int4"
    assert len(conversions(home)) == 2


def test_what_changed_is_converted_again_and_the_former_goes(model: Path, tmp_path: Path, lines: list[str]) -> None:
    home = tmp_path / "home"
    served_weights(model, "", "bf16", home, lines.append)
    served_weights(model, "", "int8", home, lines.append)
    before = conversions(home)
    facts = (model / "model.safetensors").stat()
    os.utime(model / "model.safetensors", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    served_weights(model, "", "bf16", home, lines.append)
    after = conversions(home)
    assert len(after) == 2
    assert len(after & before) == 1  # the int8 one stays until somebody wants it


def test_a_home_that_cannot_be_written_is_no_obstacle(model: Path, tmp_path: Path, lines: list[str]) -> None:
    home = tmp_path / "home"
    home.write_text("a file where a folder should be")
    weights = served_weights(model, "", "bf16", home, lines.append)
    assert weights.temporary is not None and weights.container.path.is_file()
    assert any(str(weights.temporary) in line for line in lines)
    weights.release()
    assert os.name == "nt" or not weights.temporary.exists()
    answer = run_one(load_engine(model, OPTIONS, home=home).engine, ask("hello"))
    assert answer.ids == run_one(load_engine(model, OPTIONS, home=tmp_path / "other").engine, ask("hello")).ids


def test_what_is_wrong_with_the_weights_is_told_by_its_name(model: Path, tmp_path: Path) -> None:
    data = bytearray((model / "model.safetensors").read_bytes())
    (model / "model.safetensors").write_bytes(data[:-3])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
        load_engine(model, OPTIONS, home=tmp_path / "home")


def test_a_converted_directory_is_served_as_it_is(model: Path, tmp_path: Path, lines: list[str]) -> None:
    home = tmp_path / "home"
    converted = served_weights(model, "", "int4", home, lines.append).container.path.parent
    published = load_engine(model, EngineOptions(parallel=2, context=64, threads=1, format="int4"), home=home)
    direct = load_engine(converted, EngineOptions(parallel=2, context=64, threads=1), home=tmp_path / "unused")
    assert direct.plan.format == "int4"
    assert not (tmp_path / "unused" / FOLDER).exists()
    assert run_one(direct.engine, ask("hello")).ids == run_one(published.engine, ask("hello")).ids
    frames = [ready_frame(loaded, "m") for loaded in (published, direct)]
    assert frames[0].serving_digest == frames[1].serving_digest
    assert frames[0].source_digest == frames[1].source_digest == open_container(converted).source_digest
    with pytest.raises(FormatMismatch):
        load_engine(converted, EngineOptions(format="int8"), home=home)


def test_the_ready_frame_says_what_serves(native_checkpoint: Path, tiny_checkpoint: Path, native_home: Path) -> None:
    native = ready_frame(load_engine(native_checkpoint, OPTIONS, home=native_home), "m")
    assert (native.backend, native.format, native.backend_note) == ("cpu", "bf16", "")
    quantised = EngineOptions(parallel=2, context=64, threads=1, format="int4")
    int4 = ready_frame(load_engine(native_checkpoint, quantised, home=native_home), "m")
    assert native.determinism_class.startswith(int4.determinism_class + "-")  # bf16 names the instruction set too
    assert "/cpu-" in int4.determinism_class
    assert native.serving_digest != int4.serving_digest
    assert {"weights", "kv", "state", "activations"} <= set(native.allocated_bytes)

    said: list[str] = []
    options = EngineOptions(parallel=2, context=64, threads=1)
    fallen_back = ready_frame(load_engine(tiny_checkpoint, options, home=native_home, announce=said.append), "m")
    assert fallen_back.backend == "reference"
    assert "linear_key_head_dim" in fallen_back.backend_note and fallen_back.backend_note in said[0]
