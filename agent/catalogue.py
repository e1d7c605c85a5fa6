"""What could be served: every published size with exact bytes from its config, and every model of the store.

A candidate that is not in the store is listed with what it would need; only one that is there can be chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shoal.runtime.config import ModelConfig, ModelLoadError, load_model_config
from shoal.runtime.plan import expected_tensors, published_sizes, size_label, stored_format_of

from .store import REPOSITORIES, Store, StoredModel


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model. `config` is None where it cannot be read, and then `problem` says why; `directory` None: not in the store."""

    name: str
    size: str
    num_parameters: int
    """Of the text trunk."""
    checkpoint_bytes: int
    """Of the published files, or of the safetensors on disk."""
    directory: Path | None
    config: ModelConfig | None
    problem: str = ""
    stored_format: str = ""
    """Of converted weights; empty for published ones."""

    @property
    def is_available(self) -> bool:
        return self.directory is not None and self.config is not None and not self.problem


def candidate(model: StoredModel) -> Candidate:
    """A model of the store, its config read; what is wrong with it becomes `problem`."""
    try:
        config = load_model_config(model.directory)
        stored_format = stored_format_of(model.directory)
    except ModelLoadError as error:
        return Candidate(model.name, "", 0, model.weight_bytes, model.directory, None, f"{error.code}: {error}")
    parameters = sum(spec.num_elements for spec in expected_tensors(config).values())
    return Candidate(
        model.name,
        size_label(config),
        parameters,
        model.weight_bytes,
        model.directory,
        config,
        model.problem,
        stored_format,
    )


def given(store: Store, models: Iterable[str]) -> list[Candidate]:
    """The models named on the command line. Raises ModelNotFound."""
    return [candidate(store.resolve(name)) for name in models]


def stored(store: Store) -> list[Candidate]:
    """Everything in the store."""
    return [candidate(model) for model in store.list()]


def published(names_taken: Iterable[str] = ()) -> list[Candidate]:
    """The sizes of the catalogue, smallest first, without those names."""
    taken = set(names_taken)
    return [
        Candidate(size.name, size.size.lower(), size.num_parameters, size.num_bytes, None, size.config)
        for size in published_sizes()
        if size.name in REPOSITORIES and size.name not in taken
    ]
