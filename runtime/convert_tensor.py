"""One tensor of a converted model: its rows out of the published ones, packed a piece at a time. No torch.

A matrix that may fall back to bf16 is packed in memory first (100 MB for the largest that is published) and written once it is known to
stay; tables and the head go to the file piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from shoal.kernels.cpu.quantise import PackedPiece, Probe, quantise

from .container import ContainerWriter
from .container_tensors import HALF_ROWS, PANEL_ROWS, ContainerSpec
from .convert_probe import MatrixInputs, matrix_probe, products_error
from .convert_report import TensorReport
from .errors import TensorNotFinite
from .tensor_rows import Array, RowStream, TensorSource, read_vector, to_float32
from .tensors import TensorSpec

PIECE_ELEMENTS = 4 * 1024 * 1024
"""Values that are packed at once: bounds the memory of a conversion."""
THREAD_ELEMENTS = 512 * 1024
"""Values that are worth a thread of their own."""


@dataclass(slots=True)
class TensorConverter:
    """What the tensors of one conversion have in common."""

    source: TensorSource
    specs: Mapping[str, TensorSpec]
    """Published shapes by relative name."""
    writer: ContainerWriter
    converted: Mapping[str, ContainerSpec]
    """All tensors to be written."""
    threads: int
    threshold: float
    """Output error above which a matrix stays bf16."""
    inputs: Mapping[str, MatrixInputs]
    """Of a calibration text, by the converted tensor's name; may be empty."""
    advance: Callable[[int], None]
    """Called with the number of published values that were worked through."""
    _sigma: NDArray[np.float32] | None = field(default=None, init=False)

    def convert(self, name: str) -> TensorReport:
        """Write one tensor. Raises TensorNotFinite, CheckpointCorrupt, OSError."""
        spec = self.converted[name]
        if spec.arrangement == "sigma":
            return self._write_sigma(name, spec)
        if spec.layout == "f32":
            return self._write_vector(name, spec)
        if spec.layout in ("int4", "int8") and spec.arrangement != "scan":
            return self._write_matrix(name, spec)
        return self._write_pieces(name, spec)

    def _write_vector(self, name: str, spec: ContainerSpec) -> TensorReport:
        values = read_vector(self.source, spec.sources[0], self.specs[spec.sources[0]].shape)
        if spec.fold == "one_plus":
            values = np.float32(1) + values
        elif spec.fold == "minus_exp":
            values = -np.exp(values)
        self.writer.begin(name, spec)
        self.writer.write(values.astype("<f4").tobytes())
        self.advance(values.size)
        return self._finish(name, spec)

    def _write_pieces(self, name: str, spec: ContainerSpec) -> TensorReport:
        error = energy = 0.0
        sigmas = []
        self.writer.begin(name, spec)
        for piece in self._pieces(spec):
            self.writer.write(piece.packed.data)
            error, energy = error + piece.error, energy + piece.energy
            if piece.sigma is not None:
                sigmas.append(piece.sigma)
        if sigmas:
            self._sigma = np.concatenate(sigmas)
        return self._finish(name, spec, error, energy)

    def _write_sigma(self, name: str, spec: ContainerSpec) -> TensorReport:
        """From the head's first pass; after a restart between the two that pass is computed again, for this alone."""
        if self._sigma is None:
            scan = self.converted["head.scan"]
            self._sigma = np.concatenate([piece.sigma for piece in self._pieces(scan) if piece.sigma is not None])
        self.writer.begin(name, spec)
        self.writer.write(self._sigma.astype("<f4").tobytes())
        return self._finish(name, spec)

    def _write_matrix(self, name: str, spec: ContainerSpec) -> TensorReport:
        given = self.inputs.get(name)
        probe, sizes = matrix_probe(spec.layout, spec.rows, spec.cols, given)
        error = energy = 0.0
        output_error, output_energy = np.zeros(sum(sizes)), np.zeros(sum(sizes))
        packed = []
        for piece in self._pieces(spec, None if given is None else given.importance, probe):
            packed.append(piece.packed)
            error, energy = error + piece.error, energy + piece.energy
            output_error, output_energy = output_error + piece.output_error, output_energy + piece.output_energy
        output = products_error(output_error, output_energy, sizes)
        if output > self.threshold:
            packed.clear()
            report = self._write_pieces(name, replace(spec, layout="bf16"))
            return replace(report, output_error=output, fell_back=True)
        self.writer.begin(name, spec)
        for part in packed:
            self.writer.write(part.data)
        return self._finish(name, spec, error, energy, output)

    def _finish(
        self, name: str, spec: ContainerSpec, error: float = 0.0, energy: float = 0.0, output: float | None = None
    ) -> TensorReport:
        report = TensorReport(name, spec.layout, spec.rows, spec.cols, spec.num_bytes, error, energy, output)
        self.writer.end({"error_sum": error, "energy_sum": energy, "output_error": output})
        return report

    def _pieces(
        self, spec: ContainerSpec, importance: NDArray[np.float32] | None = None, probe: Probe | None = None
    ) -> Iterator[PackedPiece]:
        """The tensor's rows from first to last."""
        scan_of = self.converted["embed.table"].layout if spec.arrangement == "scan" else None
        count = max(1, PIECE_ELEMENTS // spec.cols // PANEL_ROWS) * PANEL_ROWS
        streams = [self.source.open(source) for source in spec.sources]
        try:
            rows_of = interleaved if spec.arrangement == "interleaved" else stacked
            parts = [
                (stream, self.specs[source].shape[0]) for stream, source in zip(streams, spec.sources, strict=True)
            ]
            for rows, dtype in rows_of(parts, spec.rows, count):
                threads = min(self.threads, 1 + rows.size // THREAD_ELEMENTS)
                piece = quantise(
                    spec.layout, rows, dtype, importance=importance, scan_of=scan_of, probe=probe, threads=threads
                )
                if not piece.is_finite:
                    raise TensorNotFinite("holds NaN or infinity", tensor=" or ".join(spec.sources))
                yield piece
                self.advance(rows.size)
        finally:
            for stream in streams:
                stream.close()


Parts = list[tuple[RowStream, int]]
"""Streams and how many rows each has."""


def stacked(parts: Parts, rows: int, count: int) -> Iterator[tuple[Array, str]]:
    """`count` rows at a time of all parts one after the other, and their dtype."""
    waiting = list(parts)[::-1]
    for begin in range(0, rows, count):
        missing, taken = min(count, rows - begin), []
        while missing:
            stream, left = waiting.pop()
            now = min(left, missing)
            taken.append((stream.take(now), stream.dtype))
            missing -= now
            if left > now:
                waiting.append((stream, left - now))
        yield joined(taken)


def interleaved(parts: Parts, rows: int, count: int) -> Iterator[tuple[Array, str]]:
    """16 rows of each of two parts in turn; zeros where they end before `rows`."""
    (one, left), (two, _) = parts
    for begin in range(0, rows, count):
        half = min(count, rows - begin) // 2
        now = min(half, left)
        left -= now
        pair, dtype = joined([(one.take(now), one.dtype), (two.take(now), two.dtype)])
        both = pair.reshape(2, now, -1)
        if now < half:
            both = np.concatenate([both, np.zeros((2, half - now, both.shape[2]), both.dtype)], axis=1)
        turns = both.reshape(2, half // HALF_ROWS, HALF_ROWS, -1).swapaxes(0, 1)
        yield np.ascontiguousarray(turns).reshape(2 * half, -1), dtype


def joined(taken: list[tuple[Array, str]]) -> tuple[Array, str]:
    """Rows one after the other; in f32 where dtypes differ."""
    if len(taken) == 1:
        return taken[0]
    if len({dtype for _, dtype in taken}) == 1:
        return np.concatenate([rows for rows, _ in taken]), taken[0][1]
    return np.concatenate([to_float32(rows, dtype) for rows, dtype in taken]), "F32"
