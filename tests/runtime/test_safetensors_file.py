"""Headers: whatever the bytes are, either the library agrees that the file is good, or a typed error names what is wrong."""

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from shoal.runtime.errors import CheckpointCorrupt, ModelLoadError, TensorDtype
from shoal.runtime.safetensors_file import MAX_HEADER_BYTES, parse_header, read_header, write_safetensors


def file_bytes(header, data=b"", *, length=None):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


GOOD = {"a": entry(), "b": entry("BF16", (2, 3), (8, 20))}
DATA = bytes(20)


def test_a_library_file_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones((3,), np.float16),
        "c": np.zeros((), np.int64),
    }
    save_file(arrays, path, metadata={"format": "np"})
    header = read_header(path)
    assert header.metadata == {"format": "np"}
    assert {name: (e.dtype, e.shape) for name, e in header.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("F16", (3,)),
        "c": ("I64", ()),
    }
    content = path.read_bytes()
    for name, e in header.tensors.items():
        assert content[e.offset : e.offset + e.num_bytes] == arrays[name].tobytes()


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_a_header_whose_length_looks_like_a_pickle_is_read(length, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_bytes(json.dumps({"a": entry()}).encode().ljust(length), bytes(8)))
    assert path.read_bytes()[0] == 0x80
    assert set(read_header(path).tensors) == {"a"}


BROKEN = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "no header": struct.pack("<Q", 0),
    "header longer than the file": file_bytes(GOOD, DATA, length=10_000),
    "header longer than any": file_bytes(GOOD, DATA, length=2**63),
    "not json": file_bytes(b"{nonsense", DATA),
    "not utf-8": file_bytes(b'{"\xff": 1}', DATA),
    "a list": file_bytes(b"[]"),
    "deep": file_bytes(b'{"a":' * 50_000),
    "long digits": file_bytes(b'{"a":' + b"9" * 5000 + b"}"),
    "twice": file_bytes(
        b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}", bytes(8)
    ),
    "truncated data": file_bytes(GOOD, DATA[:-1]),
    "trailing data": file_bytes(GOOD, DATA + b"\0"),
    "overlap": file_bytes({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "same place": file_bytes({"a": entry(), "b": entry()}, bytes(8)),
    "hole": file_bytes({"a": entry(), "b": entry(offsets=(12, 20))}, DATA),
    "beyond": file_bytes({"a": entry(offsets=(0, 80), shape=(20,))}, DATA),
    "backwards": file_bytes({"a": entry(offsets=(8, 0))}, bytes(8)),
    "negative offset": file_bytes({"a": entry(offsets=(-8, 0))}, bytes(8)),
    "wrong size": file_bytes({"a": entry(shape=(3,))}, bytes(8)),
    "negative dim": file_bytes({"a": entry(shape=(-1, -2))}, bytes(8)),
    "bool dim": file_bytes({"a": entry(shape=(True, 2))}, bytes(8)),
    "huge dims": file_bytes({"a": entry(shape=(2**62, 2**62))}, bytes(8)),
    "many dims": file_bytes({"a": entry(shape=(1,) * 100 + (2,))}, bytes(8)),
    "float offset": file_bytes({"a": entry(offsets=(0, 8.0))}, bytes(8)),
    "no shape": file_bytes({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "entry is a number": file_bytes({"a": 1}),
    "metadata of numbers": file_bytes({"__metadata__": {"a": 1}}),
    "pickle": b"\x80\x02}q\0." + bytes(30),
    "zip": b"PK\x03\x04" + bytes(30),
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named(case, tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(BROKEN[case])
    with pytest.raises(CheckpointCorrupt, match=r"broken\.safetensors"):
        read_header(path)


def test_the_message_says_what_a_foreign_file_is(tmp_path):
    path = tmp_path / "x.safetensors"
    for content, word in (("pickle", "pickle"), ("zip", "zip"), ("lfs pointer", "LFS")):
        path.write_bytes(BROKEN[content])
        with pytest.raises(CheckpointCorrupt, match=word):
            read_header(path)


@pytest.mark.parametrize("dtype", ["F4", "Q4_0", 7, None])
def test_an_unknown_dtype_names_its_tensor(dtype):
    with pytest.raises(TensorDtype) as caught:
        parse_header(json.dumps({"layers.0.w": entry(dtype)}).encode(), 8, "x.safetensors")
    assert (caught.value.tensor, caught.value.file) == ("layers.0.w", "x.safetensors")


def test_a_missing_file_and_a_directory_are_corrupt(tmp_path):
    for path in (tmp_path / "nothing.safetensors", tmp_path):
        with pytest.raises(CheckpointCorrupt):
            read_header(path)


def test_no_header_beyond_the_limit_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(MAX_HEADER_BYTES + 100)
    with pytest.raises(CheckpointCorrupt, match="header of"):
        read_header(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
likely_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "I8", "F9"]) | json_values,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=1, max_size=3) | json_values,
    }
)


@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), likely_entries | json_values, max_size=3),
    data_bytes=st.integers(0, 40),
)
@settings(max_examples=400)
@example(header=GOOD, data_bytes=20)
def test_likely_headers_are_read_or_refused_as_the_library_does(header, data_bytes, tmp_path_factory):
    encoded = json.dumps(header).encode()
    try:
        mine = parse_header(encoded, data_bytes, "x")
    except ModelLoadError as fault:
        assert fault.file == "x"
        return
    path = tmp_path_factory.getbasetemp() / "agreed.safetensors"
    path.write_bytes(file_bytes(encoded, bytes(data_bytes)))
    with safe_open(path, framework="np") as theirs:  # what we accept, the library accepts and sees alike
        assert set(theirs.keys()) == set(mine.tensors)
        for name, e in mine.tensors.items():
            assert tuple(theirs.get_slice(name).get_shape()) == e.shape


@given(at=st.integers(0, 300), flip=st.integers(1, 255), keep=st.integers(0, 400))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_read_or_refused_but_never_crashes(at, flip, keep, tmp_path):
    content = bytearray(file_bytes(GOOD, DATA))
    content[at % len(content)] ^= flip
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content[:keep])
    try:
        header = read_header(path)
    except ModelLoadError as fault:
        assert "damaged.safetensors" in str(fault)
    else:
        assert all(e.offset + e.num_bytes <= keep for e in header.tensors.values())


def test_what_is_written_the_library_reads(tmp_path):
    path = tmp_path / "x.safetensors"
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 2], np.float16)
    specs = {"a": ("F32", (2, 3)), "empty": ("F32", (0, 4)), "b": ("F16", (2,))}
    raw = memoryview(a).cast("B")
    write_safetensors(path, specs, [("a", raw[:10]), ("a", raw[10:]), ("b", b.tobytes())], {"k": "v"})
    loaded = load_file(path)
    np.testing.assert_array_equal(loaded["a"], a)
    np.testing.assert_array_equal(loaded["b"], b)
    assert loaded["empty"].shape == (0, 4)
    assert read_header(path).metadata == {"k": "v"}
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    "pieces",
    [[], [("a", b"1234")], [("b", bytes(8))], [("a", bytes(12))], [("a", bytes(8)), ("a", b"1")]],
    ids=["none", "short", "other", "long", "more"],
)
def test_wrong_pieces_leave_no_file(pieces, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"what was there before")
    with pytest.raises(ValueError):
        write_safetensors(path, {"a": ("F32", (2,))}, pieces)
    assert path.read_bytes() == b"what was there before"
    assert len(list(tmp_path.iterdir())) == 1
