"""What identifies a served model: its files, the values that are served, and the arithmetic that serves them.

source_digest       the published files: equal for equal downloads
serving_digest      what answers follow from: the same files and the formats in which weights and cache are held. The weight files count
                    as they are, so that the same values in other shards have another digest: streams then do not resume between the
                    two, which is safe
determinism_class   build, torch and instruction set: equal classes give equal tokens for equal serving digests
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from .checkpoint import INDEX_FILE
from .config import CONFIG_FILE, EngineOptions
from .errors import CheckpointCorrupt
from .generation_defaults import GENERATION_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE

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


def hash_files(directory: Path | str, cache_dir: Path | None = None) -> dict[str, str]:
    """File name -> sha256 of its content, for every file that a served model consists of; a missing one is left out.

    With `cache_dir`, hashes are kept there and used again for a file of the same path, size, modification time and inode. Raises
    CheckpointCorrupt for a file that cannot be read.
    """
    folder = Path(directory).resolve()
    paths = [folder / name for name in SIDE_FILES] + sorted(folder.glob("*.safetensors"))
    known = _read_cache(cache_dir) if cache_dir is not None else {}
    hashes: dict[str, str] = {}
    fresh: dict[str, str] = {}
    for path in paths:
        try:
            if not path.is_file():
                continue
            key = _cache_key(path)
            hashes[path.name] = known.get(key) or _hash_file(path)
            fresh[key] = hashes[path.name]
        except OSError as error:
            raise CheckpointCorrupt(f"cannot be read: {error.strerror}", file=path.name) from error
    if cache_dir is not None and not fresh.items() <= known.items():
        _write_cache(cache_dir, known | fresh)
    return hashes


def source_digest(
    directory: Path | str, *, cache_dir: Path | None = None, hashes: Mapping[str, str] | None = None
) -> str:
    """Of the files, in hexadecimal. `hashes`: from `hash_files`, where they are known already."""
    found = hash_files(directory, cache_dir) if hashes is None else hashes
    return _digest(dict(found))


def serving_digest(
    directory: Path | str,
    options: EngineOptions,
    *,
    cache_dir: Path | None = None,
    hashes: Mapping[str, str] | None = None,
) -> str:
    """Of what is served, in hexadecimal. `hashes`: from `hash_files`, where they are known already."""
    found = hash_files(directory, cache_dir) if hashes is None else hashes
    # "auto" formats are what the files and dtype say, so they are spelled out: equal values, equal digests.
    held = {"weights": "bf16" if options.format == "auto" else options.format, "dtype": options.dtype}
    return _digest({**found, "": json.dumps({**held, "kv": options.resolved_kv_format}, sort_keys=True)})


def determinism_class() -> str:
    """Build, torch version, machine and instruction set on which tokens depend."""
    import torch  # the rest of this file needs no torch

    capability = torch.backends.cpu.get_cpu_capability()
    return f"shoal-{metadata.version('shoal')}/reference/torch-{torch.__version__}/{platform.machine()}-{capability}"


def _digest(named: Mapping[str, str]) -> str:
    state = hashlib.sha256()
    for name, value in sorted(named.items()):
        for part in (name.encode(), value.encode()):
            state.update(len(part).to_bytes(8, "little") + part)
    return state.hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
