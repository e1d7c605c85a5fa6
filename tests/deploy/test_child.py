"""Children of a local fleet: started again when they die, ended within the grace, failures told by their log's last line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from shoal.deploy.child import Child, ChildFailed
from shoal.deploy.ready_file import ready_content, write_json_atomically

SERVES = """
    import json, os, sys, time
    path = sys.argv[sys.argv.index("--status-file") + 1]
    with open(path + ".new", "w") as file:
        json.dump({"pid": os.getpid()}, file)
    os.replace(path + ".new", path)
    %s
    sys.stdin.read()
"""


@pytest.fixture
def make_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def make(body: str) -> Child:
        (tmp_path / "childmod.py").write_text(textwrap.dedent(body))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return Child("c", "childmod", lambda: ["run"], tmp_path, tmp_path / "logs" / "c.log")

    return make


async def serving_pid(child: Child, other_than: int | None = None) -> int:
    async with asyncio.timeout(15):
        while not child.refresh_status() or child.pid in (None, other_than) or (child.status or {})["pid"] != child.pid:
            await asyncio.sleep(0.02)
    assert child.pid is not None
    return child.pid


async def test_a_killed_child_is_started_again(make_child) -> None:  # type: ignore[no-untyped-def]
    child: Child = make_child(SERVES % "")
    async with asyncio.TaskGroup() as group:
        group.create_task(child.run())
        first = await serving_pid(child)
        os.kill(first, signal.SIGKILL)
        second = await serving_pid(child, other_than=first)
        assert second != first
        child.terminate()
        await child.wait_closed(3)
    assert child.pid is None
    assert not child.status_path.exists()


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(make_child) -> None:  # type: ignore[no-untyped-def]
    child: Child = make_child(SERVES % "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    async with asyncio.TaskGroup() as group:
        group.create_task(child.run())
        await serving_pid(child)
        await asyncio.sleep(0.2)
        started_at = asyncio.get_running_loop().time()
        child.terminate()
        await child.wait_closed(0.3)
        assert asyncio.get_running_loop().time() - started_at < 3


async def test_a_child_that_never_serves_fails_with_its_last_line(make_child) -> None:  # type: ignore[no-untyped-def]
    child: Child = make_child("import sys; print('one', file=sys.stderr); sys.exit('Error: port 1 is in use')")
    with pytest.raises(ChildFailed, match=r"^port 1 is in use$"):
        await child.run()


def test_the_ready_file_is_whole_and_private_parts_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ready.json"
    write_json_atomically(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["ready.json"]


def test_an_engine_that_restarts_keeps_its_last_pid_until_the_new_one_is_known() -> None:
    controller = {"http": "http://h", "grpc": "g:1", "pid": 1}
    agent = {"id": "n-1", "pid": 2, "engine_pid": 3, "metrics": "http://m", "model": "pocket", "phase": "ready"}
    first = ready_content(controller, [agent], None)
    assert first == {
        "http": "http://h",
        "grpc": "g:1",
        "controllers": [{"pid": 1}],
        "agents": [{"id": "n-1", "pid": 2, "engine_pid": 3, "metrics": "http://m", "model": "pocket"}],
    }
    assert ready_content(controller, [agent | {"engine_pid": None}], first) == first
    assert ready_content(controller, [agent | {"engine_pid": 4}], first)["agents"][0]["engine_pid"] == 4


if sys.platform == "win32":
    pytest.skip("signals as tested here are POSIX", allow_module_level=True)
