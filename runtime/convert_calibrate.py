"""Calibration: a text becomes what it feeds each matrix, and afterwards the measure of how far the converted model's predictions moved.

The published weights run in numpy (convert_forward.py), the converted ones on the native engine. No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shoal.kernels.cpu.engine import PAGE_TOKENS, EngineSizes

from .checkpoint import open_checkpoint
from .config import load_model_config
from .container import Container, open_container
from .convert import Calibration, Progress, check_source, convert_directory, default_threads
from .convert_forward import Float32, Trunk
from .convert_probe import MatrixInputs
from .convert_report import ConversionReport, QualityReport
from .errors import IdsInvalid
from .model_config import ModelConfig
from .native_backend import engine_shape, open_engine
from .tensor_rows import CheckpointSource, TensorSource
from .tokenizer import Tokenizer

MAX_TOKENS = 1024
"""Of the text, from its beginning."""
SEQUENCE_TOKENS = 256
"""The text is cut into sequences of so many; a rest is left out."""
MAX_SAMPLES = 64
"""Inputs of each matrix that are kept as they are."""
IMPORTANCE_FLOOR = 0.02
"""Share of the mean square that every column keeps: a text never uses all of them."""
MAX_LOGITS = 64 * 1024 * 1024
"""Logits that are held to be compared (256 MB); with a large vocabulary some positions at the beginning are."""
PIECE_TOKENS = 16
"""Positions whose logits the engine gives at once."""
MAX_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CalibrationRun:
    """The published model on the text."""

    calibration: Calibration
    ids: NDArray[np.int64]
    """[S, L]"""
    positions: int
    """The first so many of the S * L, whose logits are held."""
    logits: Float32
    """[positions, vocabulary]"""


def convert_calibrated(
    source: Path,
    target: Path,
    format: str,
    text: Path,
    progress: Progress | None = None,
    threads: int | None = None,
    fallback_threshold: float | None = None,
) -> ConversionReport:
    """`convert_directory` for what `text` needs, and how far predictions on it moved.

    Raises what `convert_directory` does, IdsInvalid, UnsupportedShape.
    """
    check_source(source, target, format)
    config = load_model_config(source)
    run = run_published(CheckpointSource(open_checkpoint(source, config)), config, read_ids(text, source, config))
    report = convert_directory(
        source,
        target,
        format,
        progress=progress,
        threads=threads,
        fallback_threshold=fallback_threshold,
        calibration=run.calibration,
    )
    quality = measure_quality(open_container(target), config, run, threads or default_threads())
    return replace(report, quality=quality)


def read_ids(path: Path, directory: Path, config: ModelConfig) -> list[int]:
    """A JSON list of ids, or UTF-8 text through the model's tokenizer. Raises IdsInvalid, ModelLoadError, OSError."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise IdsInvalid(f"{path.name} has more than {MAX_FILE_BYTES:,} bytes")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise IdsInvalid(f"{path.name} is not UTF-8") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, list):
        ids = [item for item in content if type(item) is int and 0 <= item < config.vocab_size]
        if len(ids) != len(content):
            raise IdsInvalid(f"{path.name} is no list of integers from 0 to {config.vocab_size - 1}")
    else:
        ids = Tokenizer.load(directory).encode_plain(text[: 16 * MAX_TOKENS])
    if len(ids) < 2:
        raise IdsInvalid(f"{path.name} has {len(ids)} tokens; two are the least")
    return ids[:MAX_TOKENS]


def run_published(source: TensorSource, config: ModelConfig, ids: Sequence[int]) -> CalibrationRun:
    """Inputs of every matrix, and logits. Raises CheckpointCorrupt."""
    length = min(SEQUENCE_TOKENS, len(ids))
    grid = np.array(ids[: len(ids) // length * length], np.int64).reshape(-1, length)
    inputs: dict[str, MatrixInputs] = {}

    def note(name: str, x: Float32) -> None:
        inputs[name] = matrix_inputs(x.reshape(-1, x.shape[-1]))

    trunk = Trunk.of(source, config)
    hidden = trunk.hidden(grid, note).reshape(grid.size, -1)
    positions = max(1, min(grid.size, MAX_LOGITS // config.vocab_size))
    digest = hashlib.sha256(json.dumps(grid.tolist()).encode()).hexdigest()
    return CalibrationRun(Calibration(digest, inputs), grid, positions, trunk.logits(hidden[:positions]))


def matrix_inputs(x: Float32) -> MatrixInputs:
    """Of all inputs [n, columns] of a matrix."""
    square = (x.astype(np.float64) ** 2).mean(axis=0)
    mean = max(float(square.mean()), 1e-30)
    importance = (IMPORTANCE_FLOOR + (1 - IMPORTANCE_FLOOR) * square / mean).astype(np.float32)
    step = -(-len(x) // MAX_SAMPLES)
    return MatrixInputs(importance, np.ascontiguousarray(x[::step]))


def measure_quality(container: Container, config: ModelConfig, run: CalibrationRun, threads: int) -> QualityReport:
    """The converted model on the same tokens, by the native engine. Raises UnsupportedShape, ModelLoadError."""
    length = run.ids.shape[1]
    pages = np.arange(-(-length // PAGE_TOKENS), dtype=np.int32)
    sizes = EngineSizes(len(pages), 1, PIECE_TOKENS, 1, PIECE_TOKENS, threads=threads)
    engine = open_engine(container, engine_shape(config), sizes)
    sums = np.zeros(4)  # KL divergence, negative log likelihood converted and published, same likeliest token
    counted = predicted = 0
    for begin in range(0, run.positions, PIECE_TOKENS):
        sequence, start = divmod(
            begin, length
        )  # no piece crosses sequences: there is one, or PIECE_TOKENS divides them
        count = min(PIECE_TOKENS, run.positions - begin)
        token_ids = run.ids[sequence, start : start + count].astype(np.int32)
        converted = log_softmax(engine.logits(token_ids, [count, start, 0, 0], pages, list(range(count))))
        published = log_softmax(run.logits[begin : begin + count])
        sums[0] += (np.exp(published) * (published - converted)).sum()
        sums[3] += (published.argmax(axis=1) == converted.argmax(axis=1)).sum()
        counted += count
        following = run.ids[sequence, start + 1 : start + 1 + count]
        rows = np.arange(len(following))
        sums[1] -= converted[rows, following].sum()
        sums[2] -= published[rows, following].sum()
        predicted += len(following)
    return QualityReport(
        num_tokens=counted,
        kl_divergence=float(sums[0] / counted),
        perplexity=float(np.exp(sums[1] / max(predicted, 1))),
        perplexity_bf16=float(np.exp(sums[2] / max(predicted, 1))),
        same_top=float(sums[3] / counted),
    )


def log_softmax(logits: Float32) -> NDArray[np.float64]:
    """Over the last axis, in f64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normed: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normed
