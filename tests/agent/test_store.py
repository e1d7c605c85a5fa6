"""Folders and names: what is listed, what a NAME means, and that the engine's own commands mean the same by it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shoal.agent.errors import ModelNotFound
from shoal.agent.model_list import list_models, list_text
from shoal.agent.store import MANIFEST, PARTIAL, REPOSITORIES, Store, directory_name, packaged_pocket
from shoal.runtime import model_dirs

from .tiny_models import write_tiny


def store(tmp_path: Path, pocket: Path | None = None) -> Store:
    return Store(tmp_path / "models", pocket)


def test_names_of_the_store(tmp_path: Path) -> None:
    write_tiny(tmp_path / "models" / "Qwen--Qwen3.5-0.8B", 64)
    write_tiny(tmp_path / "models" / "some--Model", 64)
    write_tiny(tmp_path / "models" / "mine", 64)
    write_tiny(tmp_path / "models" / PARTIAL / "half", 64)
    (tmp_path / "models" / "not-a-model").mkdir()
    it = store(tmp_path)
    assert [(model.name, model.origin) for model in it.list()] == [
        ("qwen3.5-0.8b", "local"),
        ("mine", "local"),
        ("Model", "local"),
    ]
    assert it.resolve("qwen3.5-0.8b").directory == it.resolve("Qwen/Qwen3.5-0.8B").directory
    assert it.resolve("Qwen/Qwen3.5-0.8B").name == "qwen3.5-0.8b"
    assert it.resolve("some/Model").name == "Model" and it.resolve("mine").name == "mine"


def test_a_directory_serves_under_its_own_name(tmp_path: Path) -> None:
    directory = write_tiny(tmp_path / "elsewhere" / "My-Tune", 64)
    model = store(tmp_path).resolve(str(directory))
    assert (model.name, model.directory, model.origin) == ("My-Tune", directory, "local")
    assert store(tmp_path).resolve(f"{directory}/").name == "My-Tune"


def test_the_packaged_model(tmp_path: Path) -> None:
    pocket = write_tiny(tmp_path / "packaged" / "pocket", 64)
    it = store(tmp_path, pocket)
    assert it.resolve("pocket").directory == pocket
    assert [(model.name, model.origin) for model in it.list()] == [("pocket", "packaged")]


@pytest.mark.parametrize(
    "name", ["qwen3.5-4b", "Qwen/Qwen3.5-4B", "nothing", "", "..", "../x", "/nowhere", ".partial", "a\\b"]
)
def test_what_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        store(tmp_path).resolve(name)


def test_the_message_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"shoal model pull qwen3\.5-4b"):
        store(tmp_path).resolve("qwen3.5-4b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        store(tmp_path).resolve(str(tmp_path / "empty"))


@pytest.mark.parametrize("damage", ["missing", "shorter"])
def test_a_pulled_model_that_lost_a_file_is_not_usable(damage: str, tmp_path: Path) -> None:
    directory = write_tiny(tmp_path / "models" / "Qwen--Qwen3.5-0.8B", 64)
    files = {path.name: {"size": path.stat().st_size, "digest": "git-0"} for path in directory.iterdir()}
    manifest = {"repo": "Qwen/Qwen3.5-0.8B", "commit": "c" * 40, "licence": "apache-2.0", "files": files}
    (directory / MANIFEST).write_text(json.dumps(manifest))
    (model,) = store(tmp_path).list()
    assert (model.origin, model.commit, model.problem) == ("pulled", "c" * 40, "")
    weights = directory / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(b"x")
    (model,) = store(tmp_path).list()
    assert "model.safetensors" in model.problem and "pull" in model.problem


@pytest.mark.parametrize("content", ["", "[]", "{", '{"files": 5}', '{"files": {"config.json": 5}}'])
def test_a_damaged_manifest_does_not_break_the_list(content: str, tmp_path: Path) -> None:
    directory = write_tiny(tmp_path / "models" / "m", 64)
    (directory / MANIFEST).write_text(content)
    assert len(store(tmp_path).list()) == 1


def test_no_store_at_all(tmp_path: Path) -> None:
    assert store(tmp_path).list() == []


@pytest.mark.parametrize(
    "name",
    ["pocket", *REPOSITORIES, *REPOSITORIES.values(), "mine", "a/b", "x.y-z_1", "elsewhere/m", "missing", "no/such"],
)
def test_the_engine_means_the_same_by_a_name(name: str, tmp_path: Path) -> None:
    for folder in (*(directory_name(one) for one in REPOSITORIES), "mine", "a--b", "x.y-z_1"):
        write_tiny(tmp_path / "models" / folder, 64)
    directory = write_tiny(tmp_path / "elsewhere" / "m", 64)
    asked = str(directory) if name == "elsewhere/m" else name
    try:
        expected: Path | None = model_dirs.resolve_model(asked, home=tmp_path).resolve()
    except model_dirs.ModelNotFound:
        expected = None
    try:
        found: Path | None = Store(tmp_path / "models", packaged_pocket()).resolve(asked).directory.resolve()
    except ModelNotFound:
        found = None
    assert found == expected


def test_both_know_the_same_repositories() -> None:
    assert dict(REPOSITORIES) == model_dirs.CATALOGUE


def test_the_list_for_people_and_machines(tmp_path: Path) -> None:
    write_tiny(tmp_path / "models" / "mine", 64)
    rows = list_models(tmp_path)
    mine = next(row for row in rows if row["name"] == "mine")
    assert mine["in_store"] and mine["checkpoint_bytes"] == 64 and mine["num_parameters"] > 0
    absent = next(row for row in rows if row["name"] == "qwen3.5-9b")
    assert (
        not absent["in_store"] and absent["repo"] == "Qwen/Qwen3.5-9B" and absent["checkpoint_bytes"] == 19_306_216_416
    )
    assert json.loads(json.dumps(rows)) == rows
    text = list_text(rows)
    assert str(tmp_path / "models" / "mine") in text and "shoal model pull qwen3.5-9b" in text


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be made unreadable there")
def test_a_store_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    assert store(tmp_path).list() == []
