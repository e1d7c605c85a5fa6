"""What identifies a served model: its files, the values that are served, and the arithmetic that serves them.

source_digest       the published files: equal for equal downloads
serving_digest      what answers follow from: the files that are served (converted ones where the back end has its own) and the formats in
                    which weights and cache are held. The weight files count as they are, so that the same values in other shards have
                    another digest: streams then do not resume between the two, which is safe

Equal determinism classes (LoadedBackend.determinism_class) give equal tokens for equal serving digests.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from .checkpoint import INDEX_FILE
from .config import CONFIG_FILE
from .errors import CheckpointCorrupt
from .generation_defaults import GENERATION_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from .plan import MemoryPlan

SIDE_FILES = (
    CONFIG_FILE,
    GENERATION_FILE,
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    INDEX_FILE,
    "chat_template.jinja",
    "chat_template.json",
)
CACHE_FILE = "file_hashes.json"
MAX_CACHE_BYTES = 16 * 1024 * 1024
MAX_CACHED_FILES = 10_000


def served_files(folder: Path) -> list[Path]:
    """Every file that a served model consists of, in a fixed order."""
    sides = [path for name in SIDE_FILES if (path := folder / name).is_file()]
    return sides + sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def hash_files(
    directory: Path | str, cache_dir: Path | None = None, *, weights: Mapping[str, str] | None = None
) -> dict[str, str]:
    """File name -> sha256 of its content, for every file that a served model consists of; a missing one is left out.

    `weights` stand for the weight files and their index, where something else is known of them. With `cache_dir`, hashes are kept there and used again for a file of the same path, size, modification time and inode. Raises
    CheckpointCorrupt for a file that cannot be read.
    """
    known = _read_cache(cache_dir) if cache_dir is not None else {}
    hashes: dict[str, str] = {}
    fresh: dict[str, str] = {}
    for path in served_files(Path(directory).resolve()):
        if weights is not None and (path.suffix == ".safetensors" or path.name == INDEX_FILE):
            continue
        try:
            key = _cache_key(path)
            hashes[path.name] = known.get(key) or hash_file(path)
            fresh[key] = hashes[path.name]
        except OSError as error:
            raise CheckpointCorrupt(f"cannot be read: {error.strerror}", file=path.name) from error
    if cache_dir is not None and not fresh.items() <= known.items():
        _write_cache(cache_dir, known | fresh)
    return hashes | dict(weights or {})


def source_digest(
    directory: Path | str, *, cache_dir: Path | None = None, hashes: Mapping[str, str] | None = None
) -> str:
    """Of the files, in hexadecimal. `hashes`: from `hash_files`, where they are known already."""
    found = hash_files(directory, cache_dir) if hashes is None else hashes
    return _digest(dict(found))


def serving_digest(plan: MemoryPlan, hashes: Mapping[str, str]) -> str:
    """Of what is served, in hexadecimal. `hashes`: from `hash_files`, of the served directory."""
    held = {"weights": plan.format, "dtype": plan.dtype, "kv": plan.kv_format}
    return _digest({**hashes, "": json.dumps(held, sort_keys=True)})


def hash_file(path: Path) -> str:
    """sha256 of its content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(named: Mapping[str, str]) -> str:
    state = hashlib.sha256()
    for name, value in sorted(named.items()):
        for part in (name.encode(), value.encode()):
            state.update(len(part).to_bytes(8, "little") + part)
    return state.hexdigest()


def _cache_key(path: Path) -> str:
    facts = path.stat()
    return f"{path}|{facts.st_size}|{facts.st_mtime_ns}|{facts.st_ino}"


def _read_cache(cache_dir: Path) -> dict[str, str]:
    """What is kept; nothing where the file is missing or not ours (it is only a cache)."""
    path = cache_dir / CACHE_FILE
    try:
        if path.stat().st_size > MAX_CACHE_BYTES:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, str) and len(value) == 64}


def _write_cache(cache_dir: Path, known: Mapping[str, str]) -> None:
    """Keep the latest hashes, whole or not at all; a folder that cannot be written costs the next start some seconds."""
    path = cache_dir / CACHE_FILE
    partial = path.with_name(f".{CACHE_FILE}.{os.getpid()}.partial")
    with suppress(OSError):
        cache_dir.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(dict(list(known.items())[-MAX_CACHED_FILES:])), encoding="utf-8")
        os.replace(partial, path)
