"""The file of a converted model: offsets, sizes and digests; what continues after a kill; what is refused."""

import json
import struct

import numpy as np
import pytest
from safetensors import safe_open

from shoal.runtime.container import (
    ContainerWriter,
    header_room,
    is_converted,
    open_container,
    verify_container,
)
from shoal.runtime.container_tensors import ContainerSpec, tensor_bytes
from shoal.runtime.errors import CheckpointCorrupt, Unsupported

SPECS = {
    "a": ContainerSpec("f32", 5, 1, ("x",)),
    "b": ContainerSpec("int4", 33, 300, ("y",)),
    "c": ContainerSpec("rows8", 3, 256, ("z",)),
}
METADATA = {"format_version": "1", "format": "int4", "source_digest": "0" * 64, "quantisation": "{}"}
BYTES = {
    name: np.random.default_rng(i).integers(
        0, 256, 20 if name == "a" else 3 * 258 if name == "c" else spec.num_bytes, np.uint8
    )
    for i, (name, spec) in enumerate(SPECS.items())
}


def write(directory, names=tuple(SPECS), finish=True, metadata=METADATA):
    with ContainerWriter(directory, metadata, header_room(SPECS, metadata)) as writer:
        for name in names:
            if name not in writer.finished:
                writer.begin(name, SPECS[name])
                half = len(BYTES[name]) // 2
                writer.write(BYTES[name][:half].data)
                writer.write(BYTES[name][half:].data)
                writer.end({"note": name})
        if finish:
            writer.finish(metadata)
        return writer


def test_what_is_written_is_found(tmp_path):
    write(tmp_path)
    assert is_converted(tmp_path)
    container = verify_container(tmp_path)
    assert container.format == "int4" and container.source_digest == "0" * 64
    whole = (tmp_path / "model.safetensors").read_bytes()
    assert list(container.tensors) == list(SPECS)
    assert next(iter(container.tensors.values())).offset % 4096 == 0
    for name, tensor in container.tensors.items():
        spec = SPECS[name]
        assert (tensor.layout, tensor.rows, tensor.cols) == (spec.layout, spec.rows, spec.cols)
        assert tensor.offset % 64 == 0 and tensor.num_bytes == spec.num_bytes
        held = whole[tensor.offset : tensor.offset + tensor.num_bytes]
        assert held.startswith(BYTES[name].tobytes()) and not any(held[len(BYTES[name]) :])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


def test_the_safetensors_library_reads_it(tmp_path):
    write(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert set(file.keys()) == set(SPECS)
        assert file.get_tensor("a").dtype == np.float32
        assert file.get_tensor("b").tobytes() == BYTES["b"].tobytes()
        assert json.loads(file.metadata()["layout"])["c"]["layout"] == "rows8"


@pytest.mark.parametrize(
    "layout, rows, cols, size",
    [
        ("int4", 32, 256, 4416),
        ("int4", 33, 257, 4 * 4416),
        ("int8", 1, 1, 8256),
        ("bf16", 64, 512, 4 * 16384),
        ("rows8", 1, 1024, 1088),  # 1,032 up to a multiple of 64
        ("rows16", 2, 300, 2048),
        ("f32", 17, 1, 128),
        ("int8", 0, 256, 0),
    ],
)
def test_sizes(layout, rows, cols, size):
    assert tensor_bytes(layout, rows, cols) == size


def test_a_second_attempt_goes_on_after_the_last_finished_tensor(tmp_path):
    write(tmp_path, ["a", "b"], finish=False)
    assert not is_converted(tmp_path)
    again = write(tmp_path, finish=False)
    assert list(again.finished) == ["a", "b", "c"]
    with ContainerWriter(tmp_path, METADATA, header_room(SPECS, METADATA)) as writer:
        assert [entry["facts"] for entry in writer.finished.values()] == [{"note": name} for name in "abc"]
        writer.finish(METADATA)
    verify_container(tmp_path)


@pytest.mark.parametrize("damage", ["half a line", "other bytes", "truncated", "not JSON", "other work"])
def test_only_what_is_whole_is_continued(tmp_path, damage):
    write(tmp_path, ["a", "b"], finish=False)
    partial, journal = tmp_path / "model.safetensors.partial", tmp_path / "model.safetensors.journal"
    metadata = METADATA
    if damage == "half a line":
        journal.write_text(journal.read_text()[:-10])
    elif damage == "not JSON":
        journal.write_text("\n".join([*journal.read_text().splitlines()[:2], "{", ""]))
    elif damage == "truncated":
        with partial.open("r+b") as file:
            file.truncate(partial.stat().st_size - 1)
    elif damage == "other bytes":
        with partial.open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([last ^ 1]))
    else:
        metadata = {**METADATA, "source_digest": "1" * 64}
    with ContainerWriter(tmp_path, metadata, header_room(SPECS, metadata)) as writer:
        assert list(writer.finished) == ([] if damage == "other work" else ["a"])
    write(tmp_path, metadata=metadata)
    assert verify_container(tmp_path).metadata["source_digest"] == metadata["source_digest"]


def test_wrong_lengths_are_our_bug(tmp_path):
    with ContainerWriter(tmp_path, METADATA, header_room(SPECS, METADATA)) as writer:
        writer.begin("a", SPECS["a"])
        writer.write(bytes(70))
        with pytest.raises(ValueError, match="70 bytes written, 64 are due"):
            writer.end({})


def test_a_changed_byte_is_noticed(tmp_path):
    write(tmp_path)
    container = open_container(tmp_path)
    with container.path.open("r+b") as file:
        file.seek(container.tensors["b"].offset + 7)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    open_container(tmp_path)
    with pytest.raises(CheckpointCorrupt, match="b: has other bytes"):
        verify_container(tmp_path)


def rewrite_header(path, change):
    """Change the parsed header, and keep its length."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    layout = json.loads(header["__metadata__"]["layout"])
    change(header, layout)
    if "layout" in header["__metadata__"]:
        header["__metadata__"]["layout"] = json.dumps(layout)
    path.write_bytes(content[:8] + json.dumps(header).encode().ljust(length) + content[8 + length :])


@pytest.mark.parametrize(
    "change, error, text",
    [
        (lambda h, _: h["__metadata__"].update(format_version="2"), Unsupported, "format version 2"),
        (lambda h, _: h["__metadata__"].update(format="int3"), CheckpointCorrupt, "int3"),
        (lambda h, _: h["__metadata__"].pop("format_version"), CheckpointCorrupt, "not a converted model"),
        (lambda h, _: h["__metadata__"].pop("layout"), CheckpointCorrupt, "layout"),
        (lambda h, _: h["__metadata__"].pop("source_digest"), CheckpointCorrupt, "made of"),
        (lambda _, layout: layout.pop("b"), CheckpointCorrupt, "layout"),
        (lambda _, layout: layout.update(d=layout["b"]), CheckpointCorrupt, "other tensors"),
        (lambda _, layout: layout["b"].update(rows=64 + 1), CheckpointCorrupt, "does not take"),
        (lambda _, layout: layout["b"].update(layout="int5"), CheckpointCorrupt, "int5"),
        (lambda _, layout: layout["b"].update(rows="33"), CheckpointCorrupt, "layout"),
        (lambda _, layout: layout.update(b=[]), CheckpointCorrupt, "layout"),
    ],
)
def test_headers_that_say_something_else(tmp_path, change, error, text):
    write(tmp_path)
    rewrite_header(tmp_path / "model.safetensors", change)
    with pytest.raises(error, match=text):
        open_container(tmp_path)


def test_what_is_no_converted_model(tmp_path):
    assert not is_converted(tmp_path)
    with pytest.raises(CheckpointCorrupt, match="not there"):
        open_container(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"PK\x03\x04 not a model")
    assert not is_converted(tmp_path)
