"""The model store: folders of checkpoints under `$SHOAL_HOME/models`, and how a NAME or DIR becomes one of them.

    models/Qwen--Qwen3.5-0.8B/           a pulled repository: `owner--name`
    models/my-finetune/                  any folder in the published layout, put there by hand
    models/.partial/Qwen--Qwen3.5-0.8B/  a pull under way; nothing in it is ever served

The rule, the same as in the engine's own commands: an existing directory is that directory; `pocket` is the model that comes
with shoal; a name of the catalogue or `owner/name` is its pulled repository; anything else is a folder of the store.
"""

from __future__ import annotations

import importlib.resources
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelNotFound

POCKET = "pocket"
PARTIAL = ".partial"
MANIFEST = ".shoal-manifest.json"
"""Beside a pulled model's files: where they are from, and the size and digest of each."""

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_STORED_MODELS = 1000

REPOSITORIES: Mapping[str, str] = {
    "qwen3.5-0.8b": "Qwen/Qwen3.5-0.8B",
    "qwen3.5-2b": "Qwen/Qwen3.5-2B",
    "qwen3.5-4b": "Qwen/Qwen3.5-4B",
    "qwen3.5-9b": "Qwen/Qwen3.5-9B",
    "qwen3.5-27b": "Qwen/Qwen3.5-27B",
    "qwen3.5-35b-a3b": "Qwen/Qwen3.5-35B-A3B",
}
"""Names of the catalogue and the repositories that they stand for."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A folder that can be served. `problem` says why it cannot, empty when it can."""

    name: str
    directory: Path
    origin: str
    """`packaged`, `pulled` or `local`."""
    repo: str = ""
    commit: str = ""
    licence: str = ""
    weight_bytes: int = 0
    problem: str = ""


class Store:
    """Reads the folders; only `pull.py` writes them."""

    def __init__(self, models: Path, packaged_pocket: Path | None) -> None:
        self.models = models
        self._pocket = packaged_pocket

    @classmethod
    def at_home(cls, home: Path) -> Store:
        """The store of a SHOAL_HOME, with the model that the installation carries."""
        return cls(home / "models", packaged_pocket())

    def directory_of(self, name: str) -> Path:
        """Where a NAME would be in the store, whether or not it is there."""
        if name == POCKET and self._pocket is not None:
            return self._pocket
        return self.models / directory_name(name)

    def resolve(self, name_or_dir: str) -> StoredModel:
        """The model that is meant. Raises ModelNotFound with what can be done about it."""
        path = Path(name_or_dir).expanduser()
        if path.is_dir() and (path / "config.json").is_file():
            return self._describe(path.resolve(), path.resolve().name)
        directory = self.directory_of(name_or_dir)
        if (directory / "config.json").is_file():
            return self._describe(directory, served_name(name_or_dir))
        if path.is_dir():
            raise ModelNotFound(
                f"{name_or_dir} is a directory without config.json: not a checkpoint in the published layout"
            )
        if name_or_dir in REPOSITORIES or "/" in name_or_dir.strip("/"):
            raise ModelNotFound(f"{name_or_dir} is not in the store {self.models}: shoal model pull {name_or_dir}")
        known = ", ".join((POCKET, *REPOSITORIES))
        raise ModelNotFound(
            f"{name_or_dir!r} is neither a directory nor a model of the store; the catalogue has {known}"
        )

    def list(self) -> list[StoredModel]:
        """Everything that is there, the packaged model first, then by folder name."""
        found = []
        if self._pocket is not None and (self._pocket / "config.json").is_file():
            found.append(self._describe(self._pocket, POCKET))
        try:
            folders = sorted(folder for folder in self.models.iterdir() if not folder.name.startswith("."))
        except OSError:
            folders = []
        for folder in folders[:MAX_STORED_MODELS]:
            if (folder / "config.json").is_file():
                found.append(self._describe(folder, name_of_directory(folder.name)))
        return found

    def _describe(self, directory: Path, name: str) -> StoredModel:
        manifest = read_manifest(directory)
        weights = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
        if manifest is None:
            origin = "packaged" if directory == self._pocket else "local"
            problem = "" if weights else "no safetensors files"
            return StoredModel(name, directory, origin, weight_bytes=weights, problem=problem)
        return StoredModel(
            name,
            directory,
            "pulled",
            repo=str(manifest.get("repo", "")),
            commit=str(manifest.get("commit", "")),
            licence=str(manifest.get("licence", "")),
            weight_bytes=weights,
            problem=_missing(directory, manifest),
        )


def directory_name(name: str) -> str:
    """Folder of a NAME in the store: `owner--name` for repositories. Raises ModelNotFound for a path that would leave it."""
    folder = REPOSITORIES.get(name, name).replace("/", "--")
    if not folder or folder.startswith(".") or any(c in folder for c in "\\:\0"):
        raise ModelNotFound(f"{name!r} is not the name of a model")
    return folder


def name_of_directory(folder: str) -> str:
    """The name under which a folder of the store is served: the catalogue's where there is one, else its own."""
    for name, repo in REPOSITORIES.items():
        if repo.replace("/", "--") == folder:
            return name
    return folder.rpartition("--")[2]


def served_name(name: str) -> str:
    """The name that a NAME is served under."""
    return name if name in REPOSITORIES or name == POCKET else name_of_directory(directory_name(name))


def packaged_pocket() -> Path | None:
    """The folder of the model that comes with shoal: in the installed package, or in the checkout."""
    candidate = importlib.resources.files("shoal") / "models" / POCKET
    path = Path(str(candidate))
    if path.is_dir():
        return path
    checkout = Path(__file__).resolve().parents[1] / "models" / POCKET
    return checkout if checkout.is_dir() else None


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """What a pull wrote beside the files, None where there is nothing readable."""
    path = directory / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            return None
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _missing(directory: Path, manifest: Mapping[str, Any]) -> str:
    """The first file that is not there in its size; sizes only, since a look at the store should not read gigabytes."""
    files = manifest.get("files")
    for name, facts in files.items() if isinstance(files, dict) else ():
        try:
            size = os.stat(directory / name).st_size
        except OSError:
            return f"{name} is missing: pull it again"
        if not isinstance(facts, dict) or size != facts.get("size"):
            return f"{name} has another size than the manifest says: pull it again"
    return ""
