"""Names of a listing: what is wanted, and what must never become a path."""

from __future__ import annotations

import email.utils
import time
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.agent.errors import RepositoryRefused, UnsafeName
from shoal.agent.hub import RemoteFile, Snapshot, check_name, check_repo, source_url, wanted_files
from shoal.agent.retry import retry_after_s


def listing(*names: str) -> list[RemoteFile]:
    return [RemoteFile(name, index, "git-" + "0" * 40) for index, name in enumerate(names)]


def test_what_is_wanted() -> None:
    names = [
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "LICENSE",
    ]
    unwanted = [
        "pytorch_model.bin",
        "model.pt",
        "x.pkl",
        "README.md",
        "onnx/model.safetensors",
        ".gitattributes",
        "run.py",
    ]
    assert {file.name for file in wanted_files(listing(*names, *unwanted))} == set(names)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_what_is_no_checkpoint(missing: str) -> None:
    names = {"config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin"} - {missing}
    with pytest.raises(RepositoryRefused):
        wanted_files(listing(*sorted(names)))


@given(st.text(alphabet=st.sampled_from("ab./\\:~ \0\ncon"), max_size=12) | st.text(max_size=20))
def test_a_checked_name_stays_inside_its_folder(name: str) -> None:
    try:
        check_name(name)
    except UnsafeName:
        return
    root = PurePosixPath("/store/model")
    assert root in (root / name).parents and ".." not in (root / name).parts
    windows = PureWindowsPath("C:/store/model") / name
    assert windows.is_relative_to("C:/store/model") and ".." not in windows.parts


@pytest.mark.parametrize("name", ["con", "NUL.txt", "aux/x", "com1.safetensors", "a/../b", "", "/", "./x/..", "a:b"])
def test_names_of_devices_and_parents(name: str) -> None:
    with pytest.raises(UnsafeName):
        check_name(name)


@pytest.mark.parametrize("repo", ["", "x", "a/b/c", "../b", "a/..", "a b/c", "a/b?", ".a/b", "https://x/y"])
def test_what_is_no_repository(repo: str) -> None:
    with pytest.raises(UnsafeName):
        check_repo(repo)


def test_sources() -> None:
    assert source_url("https://mirror.example/hub/") == "https://mirror.example/hub"
    for source in ("modelscope", "ftp://x", "http://user@x", "https://x?y", "", "/some/dir"):
        with pytest.raises(RepositoryRefused):
            source_url(source)


def test_bytes_are_addressed_by_commit() -> None:
    file = RemoteFile("model.safetensors", 1, "git-0")
    snapshot = Snapshot("https://h", "a/b", "c" * 40, "mit", (file,))
    assert snapshot.url(file) == f"https://h/a/b/resolve/{'c' * 40}/model.safetensors" and snapshot.total_bytes == 1
    assert Path(file.name).name == file.name


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("17", 17.0), ("0", 0.0), ("99999999", 600.0), ("soon", None), ("", None), (None, None), ("-5", None)],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value) == seconds


def test_retry_after_as_a_date() -> None:
    ahead = retry_after_s(email.utils.formatdate(time.time() + 30, usegmt=True))
    assert ahead is not None and 25 < ahead <= 30
    assert retry_after_s(email.utils.formatdate(time.time() - 30, usegmt=True)) == 0.0
