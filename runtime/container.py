"""The file of a converted model: written tensor by tensor, resumed after a kill, opened by its header alone, verified.

It is one safetensors file in a directory beside copies of the published side files. Its header is padded with spaces to whole pages, and
every tensor begins at a multiple of 64 bytes, so that the file is mapped and used as it is. Its metadata are, as strings:

format_version   of the layouts and of these keys; a reader of another version refuses
format           what the matrices are in: bf16, int8, int4 (a tensor may stand in another layout: see `layout`)
source_digest    of the published files (digest.py)
quantisation     JSON: how the values were chosen
layout           JSON: tensor -> {layout, rows, cols, sha256}; sha256 of the tensor's bytes, padding included

While it is written it is a partial file, its header still blank, and a journal of one JSON object a line: first what is being written,
then each tensor that is whole, with its digest. Whoever continues believes the journal as far as the digests agree with the bytes that
are there, so that nothing has to wait for the disk before the end. Imports neither torch nor numpy.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .container_tensors import ALIGNMENT, CONTAINER_FORMATS, LAYOUTS, ContainerSpec, tensor_bytes
from .errors import CheckpointCorrupt, Unsupported
from .safetensors_file import METADATA_KEY, SafetensorsHeader, read_header

CONTAINER_FILE = "model.safetensors"
FORMAT_VERSION = "1"
PAGE_BYTES = 4096
VERIFY_BYTES = 8 * 1024 * 1024
"""Read at once while digests are checked."""

_LENGTH = struct.Struct("<Q")

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True, slots=True)
class ContainerTensor:
    """Where one tensor lies (`offset` in bytes from the beginning of the file) and how."""

    layout: str
    rows: int
    cols: int
    offset: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Container:
    """A converted model's file: its header, read and checked."""

    path: Path
    format: str
    tensors: Mapping[str, ContainerTensor]
    metadata: Mapping[str, str]

    @property
    def source_digest(self) -> str:
        """Of the published files that it was made of."""
        return self.metadata["source_digest"]

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())


def is_converted(directory: Path) -> bool:
    """Whether the directory's weights are a converted model's, of any version. False where there is nothing to read."""
    path = directory / CONTAINER_FILE
    if not path.is_file():
        return False
    try:
        metadata = read_header(path).metadata
    except CheckpointCorrupt:
        return False
    return "format_version" in metadata and "layout" in metadata


def open_container(directory: Path) -> Container:
    """Read and check the header. Raises CheckpointCorrupt, TensorDtype; Unsupported for another version."""
    path = directory / CONTAINER_FILE
    if not path.is_file():
        raise CheckpointCorrupt("is not there", file=CONTAINER_FILE)
    header = read_header(path)
    metadata = header.metadata
    version = metadata.get("format_version")
    if version is None:
        raise CheckpointCorrupt("is not a converted model", file=path.name)
    if version != FORMAT_VERSION:
        raise Unsupported(f"has format version {version}; this build reads {FORMAT_VERSION}", file=path.name)
    if metadata.get("format") not in CONTAINER_FORMATS:
        raise CheckpointCorrupt(f"has the format {metadata.get('format')!r}", file=path.name)
    if "source_digest" not in metadata:
        raise CheckpointCorrupt("does not say what it was made of", file=path.name)
    try:
        layout = json.loads(metadata["layout"])
        tensors = {name: _tensor(name, layout[name], header, path.name) for name in header.tensors}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointCorrupt(f"its layout cannot be read: {error!r}", file=path.name) from error
    if layout.keys() != header.tensors.keys():
        raise CheckpointCorrupt("its layout names other tensors than it has", file=path.name)
    return Container(path, metadata["format"], tensors, metadata)


def _tensor(name: str, given: Mapping[str, Any], header: SafetensorsHeader, file: str) -> ContainerTensor:
    """Raises KeyError, TypeError for a malformed entry, CheckpointCorrupt for one that contradicts the header."""
    entry = header.tensors[name]
    layout, rows, cols, sha256 = given["layout"], given["rows"], given["cols"], given["sha256"]
    if layout not in LAYOUTS or type(rows) is not int or type(cols) is not int or rows < 0 or cols < 0:
        raise CheckpointCorrupt(f"has the layout {str(given)[:80]}", file=file, tensor=name)
    if tensor_bytes(layout, rows, cols) != entry.num_bytes:
        text = f"{layout} {rows} x {cols} does not take {entry.num_bytes} bytes"
        raise CheckpointCorrupt(text, file=file, tensor=name)
    if entry.offset % ALIGNMENT:
        raise CheckpointCorrupt(f"begins at {entry.offset}, no multiple of {ALIGNMENT}", file=file, tensor=name)
    return ContainerTensor(layout, rows, cols, entry.offset, entry.num_bytes, str(sha256))


def verify_container(directory: Path, progress: Progress | None = None) -> Container:
    """Read the whole file back and compare every tensor's digest. Raises what `open_container` does."""
    container = open_container(directory)
    total, done = container.num_bytes, 0
    try:
        for name, tensor in container.tensors.items():
            if digest_of(container.path, tensor.offset, tensor.num_bytes) != tensor.sha256:
                raise CheckpointCorrupt("has other bytes than were written", file=container.path.name, tensor=name)
            done += tensor.num_bytes
            if progress is not None:
                progress(done, total)
    except OSError as error:
        raise CheckpointCorrupt(f"cannot be read: {error.strerror}", file=container.path.name) from error
    release_cache(container.path)
    return container


def release_cache(path: Path) -> None:
    """Let the system forget what it keeps of a written file. Pieces leave small pages in its cache; an engine that maps the file
    afresh fills it with large ones, which all processes then read faster. Pages that are mapped now stay.
    """
    if hasattr(os, "posix_fadvise"):
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def digest_of(path: Path, offset: int, num_bytes: int) -> str:
    """sha256 of a part of a file, or of what is there of it. Raises OSError."""
    state, left = hashlib.sha256(), num_bytes
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while left and (piece := file.read(min(left, VERIFY_BYTES))):
            state.update(piece)
            left -= len(piece)
    return state.hexdigest()


class ContainerWriter:
    """Writes one file in order; `begin`, any number of `write`, `end` for each tensor, then `finish`.

    A partial file of the same `identity` is continued after its last finished tensor: `finished` has what the journal kept of each.
    Used as a context manager; what it has written stays for the next attempt unless `finish` was reached. Raises OSError.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any], header_bytes: int) -> None:
        """`identity`: JSON values that decide the bytes; `header_bytes`: as `header_room` says."""
        self.path = directory / f"{CONTAINER_FILE}.partial"
        self.journal_path = directory / f"{CONTAINER_FILE}.journal"
        self._target = directory / CONTAINER_FILE
        self._data_offset = header_bytes
        first = json.dumps({"identity": dict(identity), "data_offset": header_bytes}, sort_keys=True)
        self.finished: dict[str, dict[str, Any]] = self._read_journal(first)
        self._end = max(
            (entry["offset"] + entry["num_bytes"] for entry in self.finished.values()), default=header_bytes
        )
        self._file: IO[bytes] = self.path.open("r+b" if self.finished else "wb")
        self._file.truncate(self._end)
        self._file.seek(self._end)
        self._journal = self.journal_path.open("a" if self.finished else "w", encoding="utf-8")
        if not self.finished:
            self._note(first)
        self._name, self._spec, self._sha = "", ContainerSpec("f32", 0, 0, ()), hashlib.sha256()
        self._written = 0

    def __enter__(self) -> ContainerWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._journal.close()

    def _read_journal(self, first: str) -> dict[str, dict[str, Any]]:
        """What an earlier attempt finished, if it was the same work and its bytes are there."""
        finished: dict[str, dict[str, Any]] = {}
        try:
            with self.journal_path.open(encoding="utf-8") as journal:
                if journal.readline().rstrip("\n") != first:
                    return {}
                end, size = self._data_offset, self.path.stat().st_size
                for line in journal:
                    entry = json.loads(line) if line.endswith("\n") else None
                    if entry is None or entry["offset"] != end or end + entry["num_bytes"] > size:
                        break
                    if digest_of(self.path, end, entry["num_bytes"]) != entry["sha256"]:
                        break
                    finished[entry.pop("name")] = entry
                    end += entry["num_bytes"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # a torn journal keeps what stands before the tear
        return finished

    def _note(self, line: str) -> None:
        self._journal.write(line + "\n")
        self._journal.flush()

    def begin(self, name: str, spec: ContainerSpec) -> None:
        """The next tensor."""
        self._name, self._spec, self._sha, self._written = name, spec, hashlib.sha256(), 0

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """The next bytes of the tensor."""
        self._file.write(piece)
        self._sha.update(piece)
        self._written += len(piece) if not isinstance(piece, memoryview) else piece.nbytes

    def end(self, facts: Mapping[str, Any]) -> None:
        """The tensor is whole: pad it and note it. `facts` (JSON values) come back after a restart."""
        expected = self._spec.num_bytes
        if not expected - ALIGNMENT < self._written <= expected:
            raise ValueError(f"{self._name}: {self._written} bytes written, {expected} are due")
        self.write(bytes(expected - self._written))
        self._file.flush()
        entry = {
            "layout": self._spec.layout,
            "rows": self._spec.rows,
            "cols": self._spec.cols,
            "offset": self._end,
            "num_bytes": expected,
            "sha256": self._sha.hexdigest(),
            "facts": dict(facts),
        }
        self._note(json.dumps({"name": self._name, **entry}))
        self.finished[self._name] = entry
        self._end += expected

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header and give the file its name. Raises ValueError where the header outgrew its room."""
        header = encode_header(self.finished, metadata, self._data_offset)
        self._file.seek(0)
        self._file.write(header)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._journal.close()
        os.replace(self.path, self._target)
        self.journal_path.unlink()
        release_cache(self._target)


def encode_header(tensors: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, str], room: int) -> bytes:
    """Length and JSON, `room` bytes together. Raises ValueError where they need more."""
    encoded = _header_json(tensors, metadata, room)
    if _LENGTH.size + len(encoded) > room:
        raise ValueError(f"a header of {len(encoded)} bytes does not fit {room}")
    return _LENGTH.pack(room - _LENGTH.size) + encoded.ljust(room - _LENGTH.size)


def header_room(specs: Mapping[str, ContainerSpec], metadata: Mapping[str, str]) -> int:
    """Whole pages that hold the header whatever layouts the tensors end in."""
    widest = {"layout": "rows16", "sha256": "0" * 64, "offset": 10**14, "num_bytes": 10**14}
    entries = {name: {"rows": spec.rows, "cols": spec.cols, **widest} for name, spec in specs.items()}
    return -(-(_LENGTH.size + len(_header_json(entries, metadata, 0))) // PAGE_BYTES) * PAGE_BYTES


def _header_json(tensors: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, str], begin: int) -> bytes:
    layout = {
        name: {key: entry[key] for key in ("layout", "rows", "cols", "sha256")} for name, entry in tensors.items()
    }
    content: dict[str, Any] = {METADATA_KEY: {**metadata, "layout": json.dumps(layout, separators=(",", ":"))}}
    for name, entry in tensors.items():
        offset, size = entry["offset"] - begin, entry["num_bytes"]
        dtype, item_bytes = ("F32", 4) if entry["layout"] == "f32" else ("U8", 1)
        content[name] = {"dtype": dtype, "shape": [size // item_bytes], "data_offsets": [offset, offset + size]}
    return json.dumps(content, separators=(",", ":")).encode()
