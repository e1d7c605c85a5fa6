"""The node's id: made up once, kept, checked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shoal.agent.errors import BadOption, IdentityUnreadable
from shoal.agent.identity import check_node_id, load_identity


def test_it_is_made_up_once_and_kept(tmp_path: Path) -> None:
    first = load_identity(tmp_path / "identity")
    assert check_node_id(first) == first == load_identity(tmp_path / "identity")
    assert load_identity(tmp_path / "other") != first
    assert [path.name for path in (tmp_path / "identity").iterdir()] == ["agent.json"]


def test_two_first_starts_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: load_identity(tmp_path), range(16)))
    assert len(ids) == 1


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"id": 5}', '{"id": "a/b"}', "{" * 10000])
def test_a_damaged_file_is_not_replaced(content: str, tmp_path: Path) -> None:
    (tmp_path / "agent.json").write_text(content)
    with pytest.raises(IdentityUnreadable):
        load_identity(tmp_path)
    assert (tmp_path / "agent.json").read_text() == content


@pytest.mark.parametrize("node_id", ["", "a" * 65, "-a", "a-", "a b", "a/b", "ä", "a\n", "..", '"'])
def test_what_is_no_id(node_id: str) -> None:
    with pytest.raises(BadOption):
        check_node_id(node_id)


@pytest.mark.parametrize("node_id", ["a", "host-1", "A.b_c-9", "a" * 64])
def test_what_is_one(node_id: str) -> None:
    assert check_node_id(node_id) == node_id
