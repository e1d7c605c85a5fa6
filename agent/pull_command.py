"""`shoal model pull` as a person sees it: what would come, a question, a bar, the result."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import click

from .errors import UnsafeName
from .fetch import FetchConfig
from .hub import Snapshot, check_repo, look_up, source_url, token_for
from .pull import PullConfig, is_published, pull
from .store import POCKET, REPOSITORIES, directory_name

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_INTERVAL_S = 5.0
"""Without a terminal a line comes this often."""


def repository_of(name: str) -> str:
    """The repository of a NAME of the catalogue, or the REPO itself. Raises UnsafeName."""
    repo = REPOSITORIES.get(name.lower(), name)
    if "/" not in repo:
        known = ", ".join(REPOSITORIES)
        raise UnsafeName(
            f"{name!r} is neither a name of the catalogue ({known}) nor a repository like Qwen/Qwen3.5-0.8B"
        )
    return check_repo(repo)


def pull_model(name: str, source: str, revision: str, home: Path, *, ask: bool, as_json: bool) -> None:
    """The whole command. Raises a PullError; click's Abort when the answer is no."""
    if name == POCKET:
        click.echo(json.dumps({"name": POCKET, "was_there": True}) if as_json else "pocket comes with shoal")
        return
    repo, base = repository_of(name), source_url(source)
    token = token_for(base)
    snapshot = look_up(base, repo, revision, token)
    models = home / "models"
    target = models / directory_name(repo)
    if not as_json:
        click.echo(_summary(snapshot, target), err=True)
    # Where nobody can answer, a command that was typed counts as the answer.
    may_ask = ask and sys.stdin.isatty() and sys.stderr.isatty()
    if may_ask and not is_published(target, snapshot):
        click.confirm("Download?", default=True, abort=True, err=True)
    with _reporter(snapshot) as progress:
        done = pull(snapshot, PullConfig(models, FetchConfig(token=token)), progress)
    result = {
        "name": name,
        "repo": repo,
        "commit": snapshot.commit,
        "licence": snapshot.licence,
        "directory": str(done.directory),
        "num_files": len(snapshot.files),
        "total_bytes": snapshot.total_bytes,
        "fetched_bytes": done.fetched_bytes,
        "was_there": done.was_there,
    }
    if as_json:
        click.echo(json.dumps(result))
    elif done.was_there:
        click.echo(f"{repo} at {snapshot.commit[:12]} is already in {done.directory}")
    else:
        click.echo(f"{repo} at {snapshot.commit[:12]} is verified and in {done.directory}")


def _summary(snapshot: Snapshot, target: Path) -> str:
    return (
        f"{snapshot.repo} at {snapshot.commit} from {snapshot.source}\n"
        f"licence: {snapshot.licence}\n"
        f"{len(snapshot.files)} files, {snapshot.total_bytes / 1e9:.2f} GB, to {target}"
    )


def _reporter(snapshot: Snapshot) -> _Bar | _Lines:
    return _Bar(snapshot.repo) if sys.stderr.isatty() else _Lines(snapshot.repo)


class _Bar:
    """A progress bar on stderr."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._progress: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def start(self, total_bytes: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(self._title, total=total_bytes)
        self._progress.start()

    def advance(self, num_bytes: int) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, num_bytes)

    def say(self, line: str) -> None:
        click.echo(line, err=True)


class _Lines:
    """A line on stderr now and then."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._total = 0
        self._have = 0
        self._next_at = time.monotonic() + PLAIN_INTERVAL_S

    def __enter__(self) -> _Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def start(self, total_bytes: int) -> None:
        self._total = total_bytes

    def advance(self, num_bytes: int) -> None:
        self._have += num_bytes
        if time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + PLAIN_INTERVAL_S
            click.echo(f"{self._title}: {self._have:,} of {self._total:,} bytes", err=True)

    def say(self, line: str) -> None:
        click.echo(line, err=True)
