"""Digests: equal for equal files, different for what changes answers, read once where a cache is given."""

import json
import os

import pytest

from shoal.runtime.config import EngineOptions, ModelConfig
from shoal.runtime.digest import CACHE_FILE, hash_files, serving_digest, source_digest
from shoal.runtime.plan import plan_memory
from shoal.runtime.sizes import published_config

CONFIG = ModelConfig.from_mapping(published_config("0.8B"))


def served(directory, **options):
    return serving_digest(plan_memory(CONFIG, EngineOptions(**options)), hash_files(directory))


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
    before = source_digest(directory), served(directory)
    (directory / name).write_text("changed")
    after = source_digest(directory), served(directory)
    assert before[0] != after[0] and before[1] != after[1]


def test_a_content_under_another_name_is_another_source(directory):
    before = source_digest(directory)
    (directory / "a.safetensors").rename(directory / "c.safetensors")
    assert source_digest(directory) != before


def test_serving_digests_tell_arithmetics_apart_and_spellings_not(directory):
    different = [
        {"backend": "reference"},
        {"dtype": "bf16"},
        {"backend": "reference", "kv_format": "bf16"},
        {"format": "int8"},
        {"format": "int4"},
        {"format": "int4", "kv_format": "int8"},
    ]
    assert len({served(directory, **each) for each in different}) == 6
    plain = served(directory, backend="reference")
    same = {"format": "bf16", "kv_format": "f32", "parallel": 2, "context": 9}
    assert served(directory, backend="reference", **same) == plain
    assert plain != source_digest(directory)


def test_known_digests_stand_for_the_weight_files(directory):
    (directory / "model.safetensors.index.json").write_text("{}")
    hashes = hash_files(directory, weights={"model.safetensors": "known"})
    assert hashes["model.safetensors"] == "known"
    assert set(hashes) == {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}


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
