"""A repository into the store: fetched, verified, then published by one rename.

models/.partial/<folder>/lock            held while a process pulls
models/.partial/<folder>/blobs/DIGEST    verified files; DIGEST.part are those under way
models/.partial/<folder>/snapshot/       being assembled; recovered or thrown away by the next pull
models/<folder>/                         appears complete, with a manifest, or not at all
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from .atomic_file import write_json
from .errors import DiskFull
from .fetch import FetchConfig, Fetcher
from .file_lock import file_lock
from .hub import RemoteFile, Snapshot
from .store import MANIFEST, PARTIAL, directory_name, read_manifest

MANIFEST_VERSION = 1
DISK_MARGIN_BYTES = 64 * 1024 * 1024
"""What must stay free on the disk after everything has arrived."""


class Progress(Protocol):
    """Who is told how it goes."""

    def start(self, total_bytes: int) -> None: ...

    def advance(self, num_bytes: int) -> None: ...

    def say(self, line: str) -> None: ...


@dataclass(frozen=True, slots=True)
class PullConfig:
    """Where to, and the seams. `free_bytes` asks the disk of a folder."""

    models: Path
    fetch: FetchConfig = field(default_factory=FetchConfig)
    free_bytes: Callable[[Path], int] = field(default=lambda folder: shutil.disk_usage(folder).free)


@dataclass(frozen=True, slots=True)
class Pulled:
    """The result. `fetched_bytes` came over the network now."""

    directory: Path
    snapshot: Snapshot
    fetched_bytes: int
    was_there: bool


def pull(snapshot: Snapshot, config: PullConfig, progress: Progress) -> Pulled:
    """Bring the snapshot into the store. Raises a PullError; what has arrived by then is kept, nothing half is served."""
    folder = directory_name(snapshot.repo)
    target = config.models / folder
    partial = config.models / PARTIAL / folder

    def waiting() -> None:
        progress.say(f"another process is pulling {snapshot.repo}; waiting for it")

    with file_lock(partial / "lock", config.fetch.sleep, waiting):
        # Whoever held the lock may have done all of it.
        if is_published(target, snapshot):
            return Pulled(target, snapshot, 0, was_there=True)
        blobs = partial / "blobs"
        blobs.mkdir(exist_ok=True)
        _recover(partial, blobs)
        _check_disk(snapshot, blobs, config)
        fetched = _fetch_all(snapshot, blobs, config, progress)
        _publish(snapshot, partial, blobs, target)
    return Pulled(target, snapshot, fetched, was_there=False)


def is_published(target: Path, snapshot: Snapshot) -> bool:
    """The store has exactly these files, by commit and size."""
    manifest = read_manifest(target)
    if manifest is None or manifest.get("commit") != snapshot.commit or manifest.get("repo") != snapshot.repo:
        return False
    with contextlib.suppress(OSError):
        return all((target / file.name).stat().st_size == file.size for file in snapshot.files)
    return False


def missing_bytes(snapshot: Snapshot, blobs: Path) -> int:
    """What has still to come over the network."""
    return sum(
        max(0, file.size - _have(blobs, file)) for file in {file.digest: file for file in snapshot.files}.values()
    )


def _have(blobs: Path, file: RemoteFile) -> int:
    for path in (blobs / file.digest, blobs / f"{file.digest}.part"):
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_size
    return 0


def _check_disk(snapshot: Snapshot, blobs: Path, config: PullConfig) -> None:
    needed, free = missing_bytes(snapshot, blobs) + DISK_MARGIN_BYTES, config.free_bytes(blobs)
    if needed > free:
        raise DiskFull(
            f"{snapshot.repo} needs {needed:,} more bytes in {config.models} and {free:,} are free; nothing was fetched"
        )


def _fetch_all(snapshot: Snapshot, blobs: Path, config: PullConfig, progress: Progress) -> int:
    missing = missing_bytes(snapshot, blobs)
    progress.start(snapshot.total_bytes)
    with contextlib.closing(Fetcher(blobs, config.fetch, progress.advance)) as fetcher:
        for file in snapshot.files:
            fetcher.fetch(file, snapshot.url(file))
    return missing


def _publish(snapshot: Snapshot, partial: Path, blobs: Path, target: Path) -> None:
    """Assemble beside the store, then rename. A model that is replaced lies aside for the instant between two renames."""
    assembled = partial / "snapshot"
    assembled.mkdir()
    manifest = {
        "version": MANIFEST_VERSION,
        "source": snapshot.source,
        "repo": snapshot.repo,
        "commit": snapshot.commit,
        "licence": snapshot.licence,
        "files": {file.name: {"size": file.size, "digest": file.digest} for file in snapshot.files},
    }
    # Written first: with it a pull that is killed from here on can be taken up without fetching anything again.
    write_json(assembled / MANIFEST, manifest)
    for file, is_last_use in _with_last_use(snapshot.files):
        if is_last_use:
            (blobs / file.digest).replace(assembled / file.name)
        else:
            shutil.copyfile(blobs / file.digest, assembled / file.name)
    replaced = partial / "replaced"
    _remove(replaced)
    if target.exists():
        target.replace(replaced)
    assembled.replace(target)
    _remove(replaced)
    _remove(blobs)


def _with_last_use(files: tuple[RemoteFile, ...]) -> Iterator[tuple[RemoteFile, bool]]:
    """Two names may have one content: the blob moves with the last of them."""
    last = {file.digest: index for index, file in enumerate(files)}
    return ((file, last[file.digest] == index) for index, file in enumerate(files))


def _recover(partial: Path, blobs: Path) -> None:
    """Undo an assembly that a kill interrupted: its files are verified blobs again."""
    assembled = partial / "snapshot"
    manifest = read_manifest(assembled)
    files = manifest.get("files") if manifest is not None else None
    for name, facts in files.items() if isinstance(files, dict) else ():
        source = assembled / name
        if source.is_file() and source.stat().st_size == facts["size"]:
            source.replace(blobs / facts["digest"])
    _remove(assembled)


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
