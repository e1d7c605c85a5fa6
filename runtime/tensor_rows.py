"""Rows of published tensors, read in order, a piece at a time: what conversion takes its values from.

Values come as float32, or as the 16-bit integers that hold the bits of F16 and BF16. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint, TensorPlace
from .errors import CheckpointCorrupt, TensorNotFinite
from .synth_values import ValueSource
from .tensors import TensorSpec

Array = NDArray[Any]
NUMPY_DTYPES: Mapping[str, str] = {"F32": "<f4", "F16": "<u2", "BF16": "<u2"}


class RowStream(Protocol):
    """One tensor from its first row on."""

    dtype: str
    """F32, F16 or BF16."""

    def take(self, count: int) -> Array:
        """The next rows [count, columns]. Raises CheckpointCorrupt."""

    def close(self) -> None:
        """No more rows are wanted."""


class TensorSource(Protocol):
    """Where the trunk's tensors come from, by relative name (tensors.py)."""

    def open(self, name: str) -> RowStream:
        """From the first row; a tensor of another rank than 2 counts as rows of its last dimensions."""


def to_float32(values: Array, dtype: str) -> NDArray[np.float32]:
    """The values that the bits stand for."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return values.view(np.float16).astype(np.float32)
    return values.astype(np.float32, copy=False)


def read_vector(source: TensorSource, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A whole small tensor, flat. Raises TensorNotFinite, CheckpointCorrupt."""
    stream = source.open(name)
    try:
        values = to_float32(stream.take(shape[0]), stream.dtype).reshape(-1)
    finally:
        stream.close()
    if not np.isfinite(values).all():
        raise TensorNotFinite("holds NaN or infinity", tensor=name)
    return values


class CheckpointSource:
    """The tensors of a published checkpoint's files."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._places = checkpoint.places

    def open(self, name: str) -> FileRows:
        """Raises CheckpointCorrupt."""
        (place,) = self._places[name]
        return FileRows(name, place)


class FileRows:
    """Rows of one tensor of a file, through plain reads: a mapping's pages would count as this process's memory."""

    def __init__(self, name: str, place: TensorPlace) -> None:
        self.dtype = place.entry.dtype
        self._name, self._path = name, place.path
        self._columns = math.prod(place.entry.shape[1:])
        try:
            self._file: IO[bytes] = place.path.open("rb", buffering=0)
            self._file.seek(place.entry.offset)
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> FileRows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def take(self, count: int) -> Array:
        """The next rows. Raises CheckpointCorrupt."""
        rows = np.empty((count, self._columns), NUMPY_DTYPES[self.dtype])
        view, done = rows.reshape(-1).view(np.uint8).data, 0
        try:
            while done < len(view):
                got = self._file.readinto(view[done:])  # type: ignore[attr-defined]
                if not got:
                    raise CheckpointCorrupt("ended while it was read", file=self._path.name, tensor=self._name)
                done += got
        except OSError as error:
            raise self._failed(error) from error
        return rows

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _failed(self, error: OSError) -> CheckpointCorrupt:
        return CheckpointCorrupt(f"cannot be read: {error.strerror}", file=self._path.name, tensor=self._name)


class SynthSource:
    """Random values, as `shoal model synth` writes them; nothing is on a disk."""

    def __init__(self, values: ValueSource, specs: Mapping[str, tuple[str, TensorSpec]]) -> None:
        """`specs`: relative name -> the full name that the values follow from, and the shape."""
        self._values, self._specs = values, specs

    def open(self, name: str) -> SynthRows:
        """Drawn anew each time, the same."""
        full_name, spec = self._specs[name]
        return SynthRows(self._values.pieces(full_name, spec), spec)


class SynthRows:
    """Rows out of pieces of any length."""

    def __init__(self, pieces: Iterator[memoryview], spec: TensorSpec) -> None:
        self.dtype = spec.dtype
        self._pieces, self._columns = pieces, math.prod(spec.shape[1:])
        self._left: Array = np.empty(0, NUMPY_DTYPES[spec.dtype])

    def take(self, count: int) -> Array:
        """The next rows."""
        wanted, parts = count * self._columns, [self._left]
        have = len(self._left)
        while have < wanted:
            parts.append(np.frombuffer(next(self._pieces), NUMPY_DTYPES[self.dtype]))
            have += len(parts[-1])
        joined = np.concatenate(parts) if len(parts) > 1 else self._left
        self._left = joined[wanted:]
        return joined[:wanted].reshape(count, self._columns)

    def close(self) -> None:
        """Nothing to give back."""
