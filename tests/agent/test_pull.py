"""Pulls from an imitation of the hub, with every fault that a network, a disk and a kill can bring."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.agent import fetch
from shoal.agent.errors import DigestMismatch, DiskFull, RepositoryRefused, SourceUnreachable
from shoal.agent.fetch import FetchConfig
from shoal.agent.pull import DISK_MARGIN_BYTES, PullConfig, Pulled, pull
from shoal.agent.store import MANIFEST, PARTIAL, Store

from .hub import REPO, Fault, Hub, digest_of, running_hub

FOLDER = "Qwen--Qwen3.5-0.8B"
WEIGHTS = random.Random(1).randbytes(3_000_000)
FILES = {
    "config.json": b'{"model_type": "qwen3_5"}',
    "tokenizer.json": b"{}" + b" " * 20_000,
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"\x80\x04pickle",
    "README.md": b"# read me",
    "sub/other.safetensors": b"nested",
}


class Quiet:
    def __init__(self) -> None:
        self.total = 0
        self.have = 0
        self.lines: list[str] = []

    def start(self, total_bytes: int) -> None:
        self.total = total_bytes

    def advance(self, num_bytes: int) -> None:
        self.have += num_bytes

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as it:
        it.files = dict(FILES)
        yield it


def bring(hub: Hub, home: Path, progress: Quiet | None = None, **seams: Any) -> Pulled:
    free = {"free_bytes": seams.pop("free_bytes")} if "free_bytes" in seams else {}
    config = FetchConfig(**{"sleep": lambda seconds: None, **seams})
    return pull(hub.snapshot(), PullConfig(home / "models", config, **free), progress or Quiet())


def partials(home: Path) -> list[str]:
    blobs = home / "models" / PARTIAL / FOLDER / "blobs"
    return sorted(path.name for path in blobs.iterdir()) if blobs.exists() else []


def assert_published(home: Path, files: dict[str, bytes]) -> None:
    target = home / "models" / FOLDER
    assert {path.name: path.read_bytes() for path in target.iterdir() if path.name != MANIFEST} == files
    assert partials(home) == []


WANTED = {name: FILES[name] for name in ("config.json", "tokenizer.json", "model.safetensors")}


def test_a_plain_pull(hub: Hub, tmp_path: Path) -> None:
    progress = Quiet()
    done = bring(hub, tmp_path, progress)
    assert_published(tmp_path, WANTED)
    assert done.directory == tmp_path / "models" / FOLDER and not done.was_there
    assert progress.have == progress.total == done.fetched_bytes == sum(map(len, WANTED.values()))
    manifest = json.loads((done.directory / MANIFEST).read_text())
    assert (manifest["repo"], manifest["commit"], manifest["licence"]) == (REPO, "a" * 40, "apache-2.0")
    assert manifest["files"]["model.safetensors"] == {"size": len(WEIGHTS), "digest": digest_of(WEIGHTS)}
    (stored,) = Store(tmp_path / "models", None).list()
    assert (stored.name, stored.origin, stored.problem) == ("qwen3.5-0.8b", "pulled", "")
    assert {request.path.rpartition("/")[2] for request in hub.requests} == set(WANTED), "nothing else was asked for"


def test_again_is_a_look_only(hub: Hub, tmp_path: Path) -> None:
    bring(hub, tmp_path)
    hub.requests.clear()
    done = bring(hub, tmp_path)
    assert done.was_there and done.fetched_bytes == 0 and not hub.requests


def test_a_cut_connection_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.fault("model.safetensors", Fault(cut_after=1_000_000), Fault(cut_after=500_000))
    progress = Quiet()
    bring(hub, tmp_path, progress)
    assert_published(tmp_path, WANTED)
    ranges = [request.range for request in hub.requests_for("model.safetensors") if request.storage]
    assert ranges == ["", "bytes=1000000-", "bytes=1500000-"]
    assert progress.have == progress.total


def test_a_server_without_ranges_is_read_from_the_start(hub: Hub, tmp_path: Path) -> None:
    hub.fault("model.safetensors", Fault(cut_after=1_000_000), Fault(ignore_range=True))
    progress = Quiet()
    bring(hub, tmp_path, progress)
    assert_published(tmp_path, WANTED)
    assert progress.have == progress.total


def test_a_server_that_cuts_and_cannot_resume_is_given_up(hub: Hub, tmp_path: Path) -> None:
    hub.fault("model.safetensors", *[Fault(cut_after=1_000_000, ignore_range=True)] * 100)
    with pytest.raises(SourceUnreachable):
        bring(hub, tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_byte_is_fetched_again_and_then_refused(name: str, hub: Hub, tmp_path: Path) -> None:
    hub.fault(name, Fault(flip_at=5))
    bring(hub, tmp_path / "once")
    assert_published(tmp_path / "once", WANTED)
    hub.fault(name, *[Fault(flip_at=5)] * 10)
    with pytest.raises(DigestMismatch, match=name):
        bring(hub, tmp_path / "always")
    assert not (tmp_path / "always" / "models" / FOLDER).exists()
    assert digest_of(FILES[name]) not in [blob.removesuffix(".part") for blob in partials(tmp_path / "always")]


def test_the_token_stays_with_its_host(hub: Hub, tmp_path: Path) -> None:
    bring(hub, tmp_path, token="secret")
    assert {request.authorization for request in hub.requests if not request.storage} == {"Bearer secret"}
    assert {request.authorization for request in hub.requests if request.storage} == {""}


def test_endless_redirects_end(hub: Hub, tmp_path: Path) -> None:
    hub.fault(
        "model.safetensors",
        *[Fault(status=302, headers={"Location": f"{hub.url}/{REPO}/resolve/{'a' * 40}/model.safetensors"})] * 200,
    )
    with pytest.raises(SourceUnreachable, match="redirects"):
        bring(hub, tmp_path)


def test_too_many_requests_waits_as_asked(hub: Hub, tmp_path: Path) -> None:
    waits: list[float] = []
    hub.fault("config.json", Fault(status=429, headers={"Retry-After": "17"}), Fault(status=503))
    bring(hub, tmp_path, sleep=waits.append, draw=lambda: 0.5)
    assert_published(tmp_path, WANTED)
    assert waits == [17.0, 0.5]


def test_server_errors_are_retried_within_bounds(hub: Hub, tmp_path: Path) -> None:
    waits: list[float] = []
    hub.fault("model.safetensors", Fault(cut_after=1_000_000), *[Fault(status=500)] * 50)
    with pytest.raises(SourceUnreachable, match="500"):
        bring(hub, tmp_path, sleep=waits.append, draw=lambda: 1.0)
    assert len(waits) == fetch.MAX_FAILURES + 1 or len(waits) == fetch.MAX_FAILURES
    assert max(waits) <= fetch.BACKOFF_CAP_S and waits[-1] > waits[0]
    hub.faults.clear()
    hub.requests.clear()
    bring(hub, tmp_path)
    assert_published(tmp_path, WANTED)
    assert {request.range for request in hub.requests} == {"bytes=1000000-"}, "only the missing bytes of the last file"


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusals_are_not_retried(status: int, hub: Hub, tmp_path: Path) -> None:
    hub.fault("model.safetensors", Fault(status=status))
    with pytest.raises(RepositoryRefused):
        bring(hub, tmp_path)
    assert len(hub.requests_for("model.safetensors")) == 2


def test_a_full_disk_is_seen_before_anything_is_fetched(hub: Hub, tmp_path: Path) -> None:
    needed = sum(map(len, WANTED.values())) + DISK_MARGIN_BYTES
    with pytest.raises(DiskFull, match="free"):
        bring(hub, tmp_path, free_bytes=lambda folder: needed - 1)
    assert not hub.requests
    bring(hub, tmp_path, free_bytes=lambda folder: needed)
    assert_published(tmp_path, WANTED)


class SmallDisk:
    """Takes `room` bytes, then the disk is full."""

    def __init__(self, path: Path, room: list[int]) -> None:
        self._file = path.open("ab", buffering=0)
        self._room = room

    def write(self, chunk: memoryview, /) -> int:
        if not self._room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        num_bytes = self._file.write(chunk[: self._room[0]]) or 0
        self._room[0] -= num_bytes
        return num_bytes

    def __enter__(self) -> SmallDisk:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def test_a_disk_that_fills_up_meanwhile_keeps_what_arrived(hub: Hub, tmp_path: Path) -> None:
    room = [2_000_000]
    with pytest.raises(DiskFull, match="kept"):
        bring(hub, tmp_path, open_append=lambda path: SmallDisk(path, room))
    small = len(WANTED["config.json"]) + len(WANTED["tokenizer.json"])
    hub.requests.clear()
    done = bring(hub, tmp_path)
    assert_published(tmp_path, WANTED)
    assert [request.range for request in hub.requests if request.storage] == [f"bytes={2_000_000 - small}-"]
    assert done.fetched_bytes == len(WEIGHTS) - (2_000_000 - small)


def test_a_branch_that_moved_keeps_what_is_the_same(hub: Hub, tmp_path: Path) -> None:
    hub.fault("model.safetensors", Fault(cut_after=1_000_000), Fault(status=404))
    with pytest.raises(RepositoryRefused):
        bring(hub, tmp_path)
    moved = {**FILES, "config.json": b'{"model_type": "qwen3_5", "new": 1}'}
    hub.move(moved, "b" * 40)
    hub.requests.clear()
    bring(hub, tmp_path)
    assert_published(tmp_path, {name: moved[name] for name in WANTED})
    asked = {request.path.rpartition("/")[2]: request.range for request in hub.requests}
    assert asked == {"config.json": "", "model.safetensors": "bytes=1000000-"}
    assert all("b" * 40 in request.path for request in hub.requests)


def test_a_new_commit_replaces_the_old_one_whole(hub: Hub, tmp_path: Path) -> None:
    bring(hub, tmp_path)
    new = {"config.json": b"{}", "tokenizer.json": b"[]", "model-2.safetensors": b"w"}
    hub.move(new, "b" * 40)
    hub.fault("model-2.safetensors", Fault(status=404))
    with pytest.raises(RepositoryRefused):
        bring(hub, tmp_path)
    target = tmp_path / "models" / FOLDER
    assert (target / "model.safetensors").read_bytes() == WEIGHTS, "the old one is served until the new one is whole"
    bring(hub, tmp_path)
    assert_published(tmp_path, new)


def test_two_names_of_one_content(hub: Hub, tmp_path: Path) -> None:
    hub.files["generation_config.json"] = FILES["config.json"]
    hub.files["added_tokens.json"] = b""
    bring(hub, tmp_path)
    assert_published(tmp_path, {**WANTED, "generation_config.json": FILES["config.json"], "added_tokens.json": b""})
    assert sum(len(hub.requests_for(name)) for name in ("config.json", "generation_config.json")) == 1


def test_an_interrupted_assembly_is_taken_up(hub: Hub, tmp_path: Path) -> None:
    """As a kill between two renames leaves it: the manifest and some files are in place, the rest are blobs."""
    partial = tmp_path / "models" / PARTIAL / FOLDER
    (partial / "blobs").mkdir(parents=True)
    (partial / "snapshot").mkdir()
    files = {name: {"size": len(content), "digest": digest_of(content)} for name, content in WANTED.items()}
    (partial / "snapshot" / MANIFEST).write_text(json.dumps({"files": files}))
    (partial / "snapshot" / "config.json").write_bytes(WANTED["config.json"])
    (partial / "snapshot" / "tokenizer.json").write_bytes(b"torn")
    (partial / "blobs" / digest_of(WEIGHTS)).write_bytes(WEIGHTS)
    bring(hub, tmp_path)
    assert_published(tmp_path, WANTED)
    assert {request.path.rpartition("/")[2] for request in hub.requests} == {"tokenizer.json"}


def test_two_pulls_at_once_fetch_once(hub: Hub, tmp_path: Path) -> None:
    hub.on_bytes = lambda name, sent: time.sleep(0.005)
    results: list[Pulled] = []
    progress = [Quiet(), Quiet()]

    def run(index: int) -> None:
        results.append(bring(hub, tmp_path, progress[index], sleep=time.sleep))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done.was_there for done in results) == [False, True]
    assert_published(tmp_path, WANTED)
    assert all(len(hub.requests_for(name)) <= 2 for name in WANTED)
    assert sum(len(one.lines) for one in progress) == 1


def command(hub: Hub, home: Path, *args: str, repo: str = REPO, **env: str) -> list[str] | Any:
    code = "from shoal.agent.cli import model_pull; model_pull.main(prog_name='pull')"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SHOAL_"))}
    environment |= {"HF_HOME": str(home / "hf"), **env}
    words = [sys.executable, "-P", "-c", code, repo, "--source", hub.url, "--home", str(home), *args]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: Any) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def test_the_command_from_listing_to_store(hub: Hub, tmp_path: Path) -> None:
    status, out, err = outcome(command(hub, tmp_path, "--json", HF_TOKEN="secret"))
    assert status == 0, err
    result = json.loads(out)
    assert result["commit"] == "a" * 40 and result["licence"] == "apache-2.0" and not result["was_there"]
    assert_published(tmp_path, WANTED)
    listing = next(request for request in hub.requests if request.path.startswith("/api/"))
    assert listing.path == f"/api/models/{REPO}/revision/main" and listing.authorization == "Bearer secret"
    status, out, err = outcome(command(hub, tmp_path, repo="qwen3.5-0.8b"))
    assert status == 0 and "already" in out and "licence: apache-2.0" in err


def test_a_killed_command_is_resumed_without_fetching_twice(hub: Hub, tmp_path: Path) -> None:
    part = tmp_path / "models" / PARTIAL / FOLDER / "blobs" / f"{digest_of(WEIGHTS)}.part"
    ended = threading.Event()
    # The last megabyte is held back until the kill.
    hub.on_bytes = lambda name, sent: None if sent < 2_000_000 else ended.wait(20) and None
    process = command(hub, tmp_path)
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size >= 1_000_000):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    outcome(process)
    ended.set()
    assert not (tmp_path / "models" / FOLDER).exists()
    have = part.stat().st_size
    assert 1_000_000 <= have < len(WEIGHTS)
    hub.on_bytes = lambda name, sent: None
    hub.requests.clear()
    status, out, err = outcome(command(hub, tmp_path))
    assert status == 0, err
    assert_published(tmp_path, WANTED)
    assert [request.range for request in hub.requests if request.storage] == [f"bytes={have}-"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../evil.safetensors"], "leave its folder"),
        (["/etc/x.safetensors"], "leave its folder"),
        (["a\\..\\b.safetensors"], "leave its folder"),
        (["C:evil.safetensors"], "leave its folder"),
        (["sub/../../x"], "leave its folder"),
    ],
)
def test_names_that_would_leave_the_folder(names: list[str], message: str, hub: Hub, tmp_path: Path) -> None:
    hub.extra_names = names
    status, _, err = outcome(command(hub, tmp_path))
    assert status == 1 and message in err and "Traceback" not in err
    assert not any("/resolve/" in request.path for request in hub.requests)


@pytest.mark.parametrize(("status", "message"), [(404, "not on"), (401, "not on"), (418, "418")])
def test_a_listing_that_is_refused(status: int, message: str, hub: Hub, tmp_path: Path) -> None:
    hub.listing_status = [status]
    code, _, err = outcome(command(hub, tmp_path))
    assert code == 1 and message in err and "Traceback" not in err, err


def test_a_listing_that_comes_late(hub: Hub, tmp_path: Path) -> None:
    hub.listing_status = [503, 429, 500]
    code, _, err = outcome(command(hub, tmp_path))
    assert code == 0, err
    assert_published(tmp_path, WANTED)


def test_what_is_no_checkpoint(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    status, _, err = outcome(command(hub, tmp_path))
    assert status == 1 and "safetensors" in err and "pickle" in err


def test_no_such_name_and_no_such_server(hub: Hub, tmp_path: Path) -> None:
    status, _, err = outcome(command(hub, tmp_path, repo="nonsense"))
    assert status == 1 and "qwen3.5-0.8b" in err
    code = (
        "from shoal.agent import hub\n"
        "try: hub.look_up('http://127.0.0.1:9', 'a/b', 'main', None, sleep=print)\n"
        "except hub.SourceUnreachable as error: print(error)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert "cannot be reached" in done.stdout and len(done.stdout.splitlines()) == 6 and done.returncode == 0
