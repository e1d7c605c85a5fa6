"""Headers of safetensors files, read and checked before anything is allocated, and files written tensor by tensor.

A file is: header length (8 bytes, little-endian), header (a JSON object, name -> dtype, shape, data_offsets), data. What the format
demands is demanded here: tensors that fill the data exactly, without overlap or hole. Imports neither torch nor numpy.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .errors import CheckpointCorrupt, TensorDtype

MAX_HEADER_BYTES = 100 * 1000 * 1000
"""The format's own limit."""
MAX_DIMS = 8
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
METADATA_KEY = "__metadata__"
ALIGNMENT = 8
"""The header is padded with spaces so that the data begins at a multiple of this."""

_LENGTH = struct.Struct("<Q")
_FOREIGN_MAGIC = (
    (b"PK\x03\x04", "a zip archive (pickled weights?); only safetensors are read"),
    *((b"\x80" + bytes([protocol]), "a pickle; only safetensors are read") for protocol in range(2, 6)),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to; fetch the weights"),
    (b"GGUF", "a GGUF file; only safetensors are read"),
)
_MAX_MAGIC_BYTES = 32


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: `offset` is in bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """A checked header: the tensors by name, and the file's own metadata."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header of one file. Raises CheckpointCorrupt, TensorDtype."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            beginning = file.read(_MAX_MAGIC_BYTES)
            if len(beginning) < _LENGTH.size:
                raise CheckpointCorrupt(f"truncated: {file_bytes} bytes hold no header", file=path.name)
            (length,) = _LENGTH.unpack(beginning[: _LENGTH.size])
            # A header's length may begin with the bytes of another format's magic, so a good header is asked for first.
            if length > min(MAX_HEADER_BYTES, file_bytes - _LENGTH.size) or beginning[_LENGTH.size : 9] not in (
                b"{",
                b"",
            ):
                for magic, what in _FOREIGN_MAGIC:
                    if beginning.startswith(magic):
                        raise CheckpointCorrupt(f"is {what}", file=path.name)
                raise CheckpointCorrupt(
                    f"no safetensors header of {length} bytes in a file of {file_bytes}", file=path.name
                )
            file.seek(_LENGTH.size)
            header = file.read(length)
    except OSError as error:
        raise CheckpointCorrupt(f"cannot be read: {error.strerror}", file=path.name) from error
    return parse_header(header, file_bytes - _LENGTH.size - len(header), path.name)


def parse_header(header: bytes, data_bytes: int, file: str) -> SafetensorsHeader:
    """Pure part: the header's bytes and how many bytes of data follow. Raises CheckpointCorrupt, TensorDtype."""
    try:
        content = json.loads(header.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except _DuplicateName as error:
        raise CheckpointCorrupt("appears twice in the header", file=file, tensor=str(error)) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointCorrupt(f"header is not JSON: {error}", file=file) from error
    if not isinstance(content, dict):
        raise CheckpointCorrupt("header is not a JSON object", file=file)
    metadata = content.pop(METADATA_KEY, None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointCorrupt(f"{METADATA_KEY} is not a map of strings", file=file)
    begin_of_data = _LENGTH.size + len(header)
    tensors = {name: _entry(name, entry, begin_of_data, data_bytes, file) for name, entry in content.items()}
    _check_tiling(tensors, begin_of_data, data_bytes, file)
    return SafetensorsHeader(tensors, metadata)


def _entry(name: str, entry: Any, begin_of_data: int, data_bytes: int, file: str) -> TensorEntry:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointCorrupt("has no dtype, shape and data_offsets", file=file, tensor=name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise TensorDtype(f"has the unknown dtype {dtype!r}", file=file, tensor=name)
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise CheckpointCorrupt(f"has the shape {str(shape)[:80]}", file=file, tensor=name)
    if not _are_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_bytes:
        raise CheckpointCorrupt(f"lies at {str(offsets)[:80]} in {data_bytes} bytes of data", file=file, tensor=name)
    begin, end = offsets
    if math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
        raise CheckpointCorrupt(f"{dtype} {shape} does not take the {end - begin} bytes given", file=file, tensor=name)
    return TensorEntry(dtype, tuple(shape), begin_of_data + begin, end - begin)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_tiling(tensors: Mapping[str, TensorEntry], begin: int, data_bytes: int, file: str) -> None:
    """One tensor ends where the next begins, the first at the beginning of the data, the last at its end."""
    expected = begin
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if entry.offset != expected:
            what = "overlaps the one before" if entry.offset < expected else "leaves a hole before it"
            raise CheckpointCorrupt(what, file=file, tensor=name)
        expected += entry.num_bytes
    if expected != begin + data_bytes:
        raise CheckpointCorrupt(f"{begin + data_bytes - expected} bytes at the end belong to no tensor", file=file)


class _DuplicateName(Exception):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateName(next(name for name in names if names.count(name) > 1))
    return content


def write_safetensors(
    path: Path,
    specs: Mapping[str, tuple[str, tuple[int, ...]]],
    pieces: Iterable[tuple[str, bytes | memoryview]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a file whose tensors (name -> dtype, shape) come in that order, each in one or more pieces, never all at once.

    The file appears under its name when it is whole. Raises ValueError when the pieces are not what the specs say, OSError.
    """
    header: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in specs.items():
        end = offset + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(_LENGTH.size + len(encoded)) % ALIGNMENT)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(_LENGTH.pack(len(encoded)) + encoded)
            _write_pieces(file, specs, pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def _write_pieces(
    file: IO[bytes],
    specs: Mapping[str, tuple[str, tuple[int, ...]]],
    pieces: Iterable[tuple[str, bytes | memoryview]],
) -> None:
    waiting = list(specs.items())[::-1]
    name, missing = "", 0
    for piece_name, piece in pieces:
        while missing == 0:
            if not waiting:
                raise ValueError(f"{piece_name}: more pieces than the specs have")
            name, (dtype, shape) = waiting.pop()
            missing = math.prod(shape) * ITEM_BYTES[dtype]
        size = piece.nbytes if isinstance(piece, memoryview) else len(piece)
        if piece_name != name or size > missing:
            raise ValueError(f"{piece_name}: {size} bytes where {missing} of {name} are due")
        file.write(piece)
        missing -= size
    if missing or any(math.prod(shape) for _, (_, shape) in waiting):
        raise ValueError(f"{name}: the pieces end {missing} bytes early")
