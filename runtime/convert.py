"""Published checkpoints into converted models: one file for every instruction set, mapped and used as it lies.

Tensors stream from the published files through the quantiser into the new one, a few megabytes at a time, so that memory does not grow
with the model. The new directory is made beside its target and appears by one rename, read back and verified; until then it stays
where it is, and the next attempt at the same work goes on after the last finished tensor. No torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .checkpoint import INDEX_FILE, open_checkpoint
from .config import load_model_config
from .container import FORMAT_VERSION, Container, ContainerWriter, header_room, is_converted, verify_container
from .container_tensors import CONTAINER_FORMATS, container_tensors
from .convert_lock import conversion_lock
from .convert_probe import FALLBACK_THRESHOLDS, MatrixInputs
from .convert_report import ConversionReport, TensorReport
from .convert_tensor import TensorConverter
from .digest import SIDE_FILES, source_digest
from .errors import CheckpointCorrupt, OptionInvalid, Unsupported
from .model_config import ModelConfig
from .tensor_rows import CheckpointSource, TensorSource
from .tensors import expected_tensors

__all__ = ["Calibration", "ConversionReport", "convert_directory", "convert_tensors", "default_threads"]

QUANTISER_VERSION = 1
"""Changes with every change of the values that the quantiser chooses: unfinished work of another version is not continued."""
LICENCE_PATTERN = "LICEN[CS]E*"

Progress = Callable[[int, int], None]
"""Called with published values worked through and values in all."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a text does to the inputs of the matrices."""

    digest: str
    """Of the token ids, in hexadecimal."""
    inputs: Mapping[str, MatrixInputs]
    """By the converted tensor's name."""


NO_CALIBRATION = Calibration("", {})


@dataclass(frozen=True, slots=True)
class Choices:
    """How values are chosen, beside the format."""

    threads: int | None = None
    """None: as many as this process may use."""
    fallback_threshold: float | None = None
    """Relative error of a matrix's products above which it stays bf16. None: FALLBACK_THRESHOLDS."""
    calibration: Calibration = field(default=NO_CALIBRATION)


def convert_directory(
    source: Path,
    target: Path,
    format: str,
    *,
    progress: Progress | None = None,
    threads: int | None = None,
    fallback_threshold: float | None = None,
    calibration: Calibration = NO_CALIBRATION,
) -> ConversionReport:
    """Convert the published directory `source` into the new directory `target`.

    Raises OptionInvalid (format, out), Unsupported (converted already; a kind of model without converted form), ConfigInvalid,
    CheckpointCorrupt, TensorFault's children, OSError.
    """
    check_source(source, target, format)
    config = load_model_config(source)
    checkpoint = open_checkpoint(source, config)

    def copy_side_files(directory: Path) -> None:
        names = [name for name in SIDE_FILES if name != INDEX_FILE]
        for path in (*(source / name for name in names), *sorted(source.glob(LICENCE_PATTERN))):
            if path.is_file():
                shutil.copyfile(path, directory / path.name)

    choices = Choices(threads, fallback_threshold, calibration)
    digest = source_digest(source)
    return convert_tensors(
        CheckpointSource(checkpoint), config, target, format, digest, copy_side_files, choices, progress
    )


def convert_tensors(
    source: TensorSource,
    config: ModelConfig,
    target: Path,
    format: str,
    digest: str,
    write_side_files: Callable[[Path], None],
    choices: Choices = Choices(),
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert tensors from anywhere; `digest` says what they are. Raises what `convert_directory` raises of them."""
    check_target(target, format)
    work = target.with_name(f".{target.name}.partial")
    lock = target.with_name(f".{target.name}.lock")
    with conversion_lock(lock):
        check_target(target, format)  # another process may have made it meanwhile
        work.mkdir(parents=True, exist_ok=True)
        report = _convert(source, config, work, target, format, digest, choices, progress)
        write_side_files(work)
        if target.is_dir():
            target.rmdir()
        os.replace(work, target)
        with suppress(OSError):  # whoever waits for it finds the target
            lock.unlink()
    return report


def check_source(source: Path, target: Path, format: str) -> None:
    """What is wrong is said before anything large is read. Raises OptionInvalid, Unsupported, ConfigInvalid."""
    if is_converted(source):
        raise Unsupported(f"{source.name} is a converted model already; convert the published one")
    check_target(target, format)
    container_tensors(load_model_config(source), format)


def check_target(target: Path, format: str) -> None:
    """Raises OptionInvalid."""
    if format not in CONTAINER_FORMATS:
        raise OptionInvalid("format", f"{format!r} is none of {', '.join(CONTAINER_FORMATS)}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OptionInvalid("out", f"{target} is there already and is not an empty directory")


def _convert(
    source: TensorSource,
    config: ModelConfig,
    work: Path,
    target: Path,
    format: str,
    digest: str,
    choices: Choices,
    progress: Progress | None,
) -> ConversionReport:
    began = time.monotonic()
    published, specs = expected_tensors(config), container_tensors(config, format)
    limit = choices.fallback_threshold
    threshold = FALLBACK_THRESHOLDS[format] if limit is None else limit
    chosen_by = {
        "version": QUANTISER_VERSION,
        "calibration": choices.calibration.digest,
        "fallback_threshold": threshold if threshold < float("inf") else None,
    }
    metadata = {
        "format_version": FORMAT_VERSION,
        "format": format,
        "source_digest": digest,
        "quantisation": json.dumps(chosen_by, sort_keys=True),
    }
    total = sum(published[name].num_elements for spec in specs.values() for name in spec.sources)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done, total), total)

    with ContainerWriter(work, metadata, header_room(specs, metadata)) as writer:
        converter = TensorConverter(
            source=source,
            specs=published,
            writer=writer,
            converted=specs,
            threads=choices.threads or default_threads(),
            threshold=threshold,
            inputs=choices.calibration.inputs,
            advance=advance,
        )
        num_resumed, reports = len(writer.finished), []
        for name, spec in specs.items():
            if name in writer.finished:
                reports.append(report_again(name, writer.finished[name], spec.layout))
                advance(sum(published[source].num_elements for source in spec.sources))
            else:
                reports.append(converter.convert(name))
        writer.finish(metadata)
    if progress is not None:
        progress(total, total)
    container: Container = verify_container(work)
    return ConversionReport(
        directory=target,
        format=format,
        source_digest=digest,
        num_bytes=container.path.stat().st_size,
        source_bytes=sum(spec.num_bytes for spec in published.values()),
        seconds=time.monotonic() - began,
        num_resumed=num_resumed,
        tensors=tuple(reports),
    )


def report_again(name: str, entry: Mapping[str, object], layout: str) -> TensorReport:
    """Of a tensor that an earlier attempt wrote. Raises CheckpointCorrupt where the journal is not ours."""
    facts = entry["facts"]
    try:
        assert isinstance(facts, dict)
        return TensorReport(
            name=name,
            layout=str(entry["layout"]),
            rows=int(str(entry["rows"])),
            cols=int(str(entry["cols"])),
            num_bytes=int(str(entry["num_bytes"])),
            error_sum=float(facts["error_sum"]),
            energy_sum=float(facts["energy_sum"]),
            output_error=facts["output_error"],
            fell_back=entry["layout"] != layout,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise CheckpointCorrupt(f"the journal of an earlier attempt cannot be read: {error!r}", tensor=name) from error


def default_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def synthetic_digest(content: Mapping[str, object], seed: int) -> str:
    """Stands for the source digest of random weights that were never published."""
    return hashlib.sha256(json.dumps({"config": dict(content), "seed": seed}, sort_keys=True).encode()).hexdigest()
