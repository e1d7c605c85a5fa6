"""`shoal model list`: the store and the catalogue side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .catalogue import Candidate, candidate, published
from .store import POCKET, REPOSITORIES, Store, StoredModel


def list_models(home: Path) -> list[dict[str, Any]]:
    """A row a model: first what is in the store, then what the catalogue has besides."""
    models = Store.at_home(home).list()
    rows = [_stored_row(model, candidate(model)) for model in models]
    absent = published(names_taken=[model.name for model in models])
    return rows + [_absent_row(one) for one in absent]


def _stored_row(model: StoredModel, one: Candidate) -> dict[str, Any]:
    return {
        "name": model.name,
        "in_store": True,
        "size": one.size or None,
        "num_parameters": one.num_parameters or None,
        "checkpoint_bytes": model.weight_bytes,
        "directory": str(model.directory),
        "origin": model.origin,
        "repo": model.repo or None,
        "commit": model.commit or None,
        "licence": model.licence or None,
        "problem": one.problem or None,
    }


def _absent_row(one: Candidate) -> dict[str, Any]:
    return {
        "name": one.name,
        "in_store": False,
        "size": one.size,
        "num_parameters": one.num_parameters,
        "checkpoint_bytes": one.checkpoint_bytes,
        "directory": None,
        "origin": "catalogue",
        "repo": REPOSITORIES.get(one.name),
        "commit": None,
        "licence": None,
        "problem": one.problem or None,
    }


def list_text(rows: list[dict[str, Any]]) -> str:
    """One line a model."""
    lines = [f"{'NAME':<24} {'PARAMETERS':>12} {'FILES':>10}  WHERE"]
    for row in rows:
        parameters = "-" if row["num_parameters"] is None else f"{row['num_parameters'] / 1e6:,.1f} M"
        size = f"{row['checkpoint_bytes'] / 1e9:,.2f} GB"
        where = row["directory"] if row["in_store"] else f"shoal model pull {row['name']}"
        if row["name"] == POCKET and row["origin"] == "packaged":
            where = "comes with shoal"
        problem = f"  ({row['problem']})" if row["problem"] else ""
        lines.append(f"{row['name']:<24} {parameters:>12} {size:>10}  {where}{problem}")
    return "\n".join(lines)
