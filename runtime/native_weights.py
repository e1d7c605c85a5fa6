"""Converted weights for a directory: its own, or those that were made from it once and are kept under $SHOAL_HOME. No torch.

$SHOAL_HOME/converted/<place>-<content>-<format>/    one published directory, converted; complete, or not there

`place` stands for the directory's path, `content` for the sizes and times of its files: where these change, the next conversion takes
the place of the former. Where $SHOAL_HOME cannot be written, a temporary directory serves, and is gone with the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .container import Container, open_container
from .cores import num_cores
from .digest import served_files
from .errors import CheckpointCorrupt, OptionInvalid

FOLDER = "converted"
Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ServedWeights:
    """A converted file, and the temporary directory that it lies in, where it does."""

    container: Container
    temporary: Path | None = None

    def release(self) -> None:
        """Once mapped: a temporary file goes on living in the mapping alone, and ends with the process."""
        if self.temporary is not None and sys.platform != "win32":  # where an open file cannot be removed
            shutil.rmtree(self.temporary, ignore_errors=True)


def served_weights(directory: Path, stored_format: str, format: str, home: Path, announce: Announce) -> ServedWeights:
    """Those of a converted directory, or of a published one in `format`. Raises ModelLoadError."""
    if stored_format:
        return ServedWeights(open_container(directory))
    folder = home / FOLDER
    place, content = _key(directory)
    target = folder / f"{place}-{content}-{format}"
    if not target.is_dir():
        try:
            _remove_former(folder, place, target.name, format)
            _convert(directory, target, format, announce)
        except OSError:
            return _temporary(directory, format, announce)
        except OptionInvalid:
            if not target.is_dir():  # else another process made it meanwhile
                raise
    return ServedWeights(open_container(target))


def _temporary(directory: Path, format: str, announce: Announce) -> ServedWeights:
    temporary = Path(tempfile.mkdtemp(prefix="shoal-converted-"))
    try:
        announce(f"the folder of converted weights cannot be written; they are kept in {temporary} until the end")
        _convert(directory, temporary / "model", format, announce)
        return ServedWeights(open_container(temporary / "model"), temporary)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointCorrupt(f"cannot be converted: {error.strerror}", file=directory.name) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _convert(directory: Path, target: Path, format: str, announce: Announce) -> None:
    began_at = time.monotonic()
    announce(f"converting {directory.name} to {format}, once, into {target}")
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        tenths = 10 * done // max(total, 1)
        if tenths > told and time.monotonic() - began_at > 2.0:
            announce(f"converting {directory.name}: {10 * tenths} %")
        told = max(told, tenths)

    from .convert import convert_directory  # numpy and much else, for what is done once

    convert_directory(directory, target, format, progress=progress, threads=num_cores())
    announce(f"converted in {time.monotonic() - began_at:.1f} s")


def _key(directory: Path) -> tuple[str, str]:
    """Names of the place and of what lies there."""
    resolved = directory.resolve()
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in served_files(resolved)]
    return _short_hash(str(resolved)), _short_hash(repr(facts))


def _short_hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:12]


def _remove_former(folder: Path, place: str, name: str, format: str) -> None:
    """Conversions, whole or not, of the same directory as it was before. Who has one mapped keeps it."""
    for path in (*folder.glob(f"{place}-*-{format}"), *folder.glob(f".{place}-*-{format}.*")):
        if name not in path.name:
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
