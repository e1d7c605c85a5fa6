"""Digests: equal for equal files, different for what changes answers, read once where a cache is given."""

import json
import os

import pytest

from shoal.runtime.config import EngineOptions
from shoal.runtime.digest import CACHE_FILE, determinism_class, hash_files, serving_digest, source_digest


@pytest.fixture
def directory(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "a.safetensors", "b.safetensors"):
        (folder / name).write_text(f"content of {name}")
    (folder / "README.md").write_text("not served")
    return folder


def test_only_what_is_served_counts(directory):
    before = source_digest(directory)
    (directory / "README.md").write_text("changed")
    assert source_digest(directory) == before
    assert set(hash_files(directory)) == {p.name for p in directory.iterdir()} - {"README.md"}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "a.safetensors"])
def test_every_served_file_counts(directory, name):
    options = EngineOptions()
    before = source_digest(directory), serving_digest(directory, options)
    (directory / name).write_text("changed")
    after = source_digest(directory), serving_digest(directory, options)
    assert before[0] != after[0] and before[1] != after[1]


def test_a_content_under_another_name_is_another_source(directory):
    before = source_digest(directory)
    (directory / "a.safetensors").rename(directory / "c.safetensors")
    assert source_digest(directory) != before


def test_serving_digests_tell_arithmetics_apart_and_spellings_not(directory):
    options = [EngineOptions(), EngineOptions(dtype="bf16"), EngineOptions(kv_format="bf16")]
    assert len({serving_digest(directory, each) for each in options}) == 3
    plain = serving_digest(directory, EngineOptions())
    assert serving_digest(directory, EngineOptions(format="bf16", kv_format="f32", parallel=2, context=9)) == plain
    assert plain != source_digest(directory)


def test_known_hashes_are_used_until_the_file_changes(directory, tmp_path):
    cache = tmp_path / "cache"
    want = source_digest(directory, cache_dir=cache)
    path = cache / CACHE_FILE
    kept = json.loads(path.read_text())
    assert len(kept) == 5
    forged = {key: "0" * 64 if "a.safetensors" in key else value for key, value in kept.items()}
    path.write_text(json.dumps(forged))
    assert source_digest(directory, cache_dir=cache) != want  # it was not read again
    facts = (directory / "a.safetensors").stat()
    os.utime(directory / "a.safetensors", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert source_digest(directory, cache_dir=cache) == want


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "{", "\xff"])
def test_a_damaged_cache_is_no_cache(directory, tmp_path, content):
    (tmp_path / CACHE_FILE).write_text(content, encoding="latin-1")
    assert source_digest(directory, cache_dir=tmp_path) == source_digest(directory)


def test_the_determinism_class_names_build_and_machine():
    name = determinism_class()
    assert name.startswith("shoal-") and "/torch-" in name
    assert name == determinism_class()
