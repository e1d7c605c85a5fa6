"""Which back end serves what, and what is said where it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shoal.runtime.backends import broken_constraint, choose_backend, stored_format_of
from shoal.runtime.config import EngineOptions, ModelConfig
from shoal.runtime.errors import CheckpointCorrupt, FormatMismatch, Unsupported, UnsupportedShape
from shoal.runtime.safetensors_file import write_safetensors
from shoal.runtime.sizes import SIZES, published_config

SMALL = ModelConfig.from_mapping(published_config("0.8B"))


def chosen(
    config: ModelConfig = SMALL, stored: str = "", *, torch: bool = True, **options: object
) -> tuple[str, str, str]:
    choice = choose_backend(config, EngineOptions(**options), stored_format=stored, has_torch=torch)  # type: ignore[arg-type]
    return choice.name, choice.format, choice.kv_format


def test_auto_is_native_where_nothing_speaks_against_it() -> None:
    assert chosen() == ("cpu", "bf16", "f32")
    assert chosen(torch=False) == ("cpu", "bf16", "f32")
    assert chosen(kv_format="bf16") == ("cpu", "bf16", "bf16")
    assert chosen(format="int4", kv_format="f32") == ("cpu", "int4", "f32")
    assert chosen(format="int4", kv_format="int8") == ("cpu", "int4", "int8")
    assert chosen(stored="int8") == ("cpu", "int8", "bf16")
    assert chosen(stored="int4", format="int4", backend="cpu") == ("cpu", "int4", "bf16")


@pytest.mark.parametrize("options", [{"dtype": "bf16"}, {"block_tokens": 16}, {"backend": "reference"}])
def test_what_only_the_reference_knows_asks_for_it(options: dict[str, object]) -> None:
    assert chosen(**options)[0] == "reference"  # type: ignore[arg-type]
    choice = choose_backend(SMALL, EngineOptions(**options), has_torch=True)  # type: ignore[arg-type]
    assert choice.note == ""
    with pytest.raises(Unsupported, match="torch"):
        chosen(torch=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"linear_conv_kernel_dim": 3}, "linear_conv_kernel_dim"),
        ({"linear_key_head_dim": 8}, "linear_key_head_dim"),
        ({"linear_value_head_dim": 24}, "linear_value_head_dim"),
        ({"head_dim": 100}, "head_dim"),
    ],
)
def test_a_broken_constraint_is_named(change: dict[str, int], named: str) -> None:
    odd = replace(SMALL, **change)  # type: ignore[arg-type]
    choice = choose_backend(odd, EngineOptions(), has_torch=True)
    assert choice.name == "reference"
    assert choice.note.startswith(named)
    for options in (EngineOptions(backend="cpu"), EngineOptions(format="int4"), EngineOptions(isa="scalar")):
        with pytest.raises(UnsupportedShape, match=named):
            choose_backend(odd, options, has_torch=True)
    with pytest.raises(UnsupportedShape, match=f"{named}.*torch"):
        choose_backend(odd, EngineOptions(), has_torch=False)


def test_published_sizes_but_the_sparse_ones_are_native() -> None:
    broken = {size: broken_constraint(ModelConfig.from_mapping(published_config(size))) for size in SIZES}
    assert {size for size, why in broken.items() if why} == {size for size in SIZES if "-A" in size}


def test_only_the_constraints_of_layers_that_are_there_count() -> None:
    attention = replace(SMALL, layer_types=("full_attention",), linear_key_head_dim=3, linear_conv_kernel_dim=2)
    delta = replace(SMALL, layer_types=("linear_attention",), head_dim=7)
    assert broken_constraint(attention) == broken_constraint(delta) == ""


def test_converted_weights_are_what_they_are() -> None:
    with pytest.raises(FormatMismatch, match=r"int4.*int8"):
        chosen(stored="int4", format="int8")
    with pytest.raises(FormatMismatch, match="published"):
        chosen(stored="int4", backend="reference")
    with pytest.raises(FormatMismatch, match="published"):
        chosen(stored="bf16", dtype="bf16")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [({}, ""), ({"format": "pt"}, ""), ({"format": "int4", "format_version": "1"}, "int4")],
)
def test_the_stored_format_is_read_from_the_header(tmp_path: Path, metadata: dict[str, str], expected: str) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"a": ("U8", (1,))}, [("a", b"x")], metadata)
    assert stored_format_of(tmp_path) == expected


def test_what_is_no_converted_file(tmp_path: Path) -> None:
    assert stored_format_of(tmp_path) == ""
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    assert stored_format_of(tmp_path) == ""  # whoever loads it says what is wrong
    metadata = {"format": "int3", "format_version": "1"}
    write_safetensors(tmp_path / "model.safetensors", {"a": ("U8", (1,))}, [("a", b"x")], metadata)
    with pytest.raises(CheckpointCorrupt, match="int3"):
        stored_format_of(tmp_path)
