"""One file over HTTP: in ranges, resumed where it stopped, retried within bounds, verified before it counts.

The partial file is named by the digest, so bytes survive a kill and also a branch that moves between two pulls.
Synchronous: it runs in the process of the pull, which does nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urljoin, urlsplit

import httpx2

from .backoff import Backoff
from .errors import DigestMismatch, DiskFull, RepositoryRefused, SourceUnreachable
from .hub import RemoteFile
from .retry import RETRYABLE_STATUS, Busy, retry_after_s

HASH_CHUNK_BYTES = 1024 * 1024
CONNECT_TIMEOUT_S = 15.0
READ_TIMEOUT_S = 60.0
"""A connection that brings no byte for this long is cut and taken up again."""

MAX_FAILURES = 8
"""Failures in a row without one new byte; then the pull ends and keeps what it has."""

MAX_DIGEST_FAILURES = 2
"""Times that a file may arrive with wrong bytes before the source is not believed any more."""

MAX_REDIRECTS = 5
BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 30.0


class Appendable(Protocol):
    """An unbuffered file: `write` returns how many bytes it took."""

    def write(self, chunk: memoryview, /) -> int: ...

    def __enter__(self) -> Appendable: ...

    def __exit__(self, *exc: object) -> None: ...


class Hash(Protocol):
    """What hashlib's objects have."""

    def update(self, chunk: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class FetchConfig:
    """Seams: the clock's sleep, chance, and how a partial file is opened for appending (a full disk in tests)."""

    token: str | None = None
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[], float] = random.random
    open_append: Callable[[Path], Appendable] = field(default=lambda path: path.open("ab", buffering=0))


def new_hash(file: RemoteFile) -> Hash:
    """The hash that the listing used for this file."""
    kind, _, _ = file.digest.partition("-")
    if kind == "sha256":
        return hashlib.sha256()
    # git's object id: SHA-1 over a header with the length, then the content.
    return hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)


def digest_matches(file: RemoteFile, digest: Hash) -> bool:
    return digest.hexdigest() == file.digest.partition("-")[2]


class Fetcher:
    """Fetches files into a folder of blobs. One HTTP client for all of them."""

    def __init__(self, folder: Path, config: FetchConfig, progress: Callable[[int], None]) -> None:
        """`progress` is told bytes that are there: fetched ones, found ones; a negative number takes some back."""
        self._folder = folder
        self._config = config
        self._progress = progress
        timeout = httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._client = httpx2.Client(timeout=timeout, follow_redirects=False)

    def close(self) -> None:
        self._client.close()

    def blob(self, file: RemoteFile) -> Path:
        """Where the verified file lies."""
        return self._folder / file.digest

    def fetch(self, file: RemoteFile, url: str) -> Path:
        """Bring the file and verify it. Raises DigestMismatch, DiskFull, RepositoryRefused or SourceUnreachable."""
        blob = self.blob(file)
        if blob.exists() and blob.stat().st_size == file.size:
            self._progress(file.size)
            return blob
        part = blob.with_name(blob.name + ".part")
        for _ in range(MAX_DIGEST_FAILURES):
            digest = self._complete(file, url, part)
            if digest_matches(file, digest):
                part.replace(blob)
                return blob
            self._progress(-file.size)
            part.unlink()
        raise DigestMismatch(f"{file.name}: what arrived is not what the hub lists ({file.digest}); it was deleted")

    def _complete(self, file: RemoteFile, url: str, part: Path) -> Hash:
        """Append to the partial file until it has the listed size; returns the hash of all of it."""
        digest, have = self._take_up(file, part)
        part.touch()  # an empty file is complete without a request
        backoff = Backoff(BACKOFF_BASE_S, BACKOFF_CAP_S, self._config.draw)
        most = have
        while have < file.size:
            failure = Busy("the connection was cut")
            try:
                with self._writing(part) as append:
                    for chunk in self._chunks(file, url, have):
                        append(chunk)
                        digest.update(chunk)
                        have += len(chunk)
                        self._progress(len(chunk))
            except _Restart:
                # The server does not continue where we are: from the beginning, then.
                self._progress(-have)
                part.unlink()
                digest, have = new_hash(file), 0
                failure = Busy("the server cannot resume")
            except Busy as error:
                failure = error
            except httpx2.HTTPError as error:
                failure = Busy(f"{type(error).__name__}: {error}")
            if have >= file.size:
                break
            if have > most:
                backoff.reset()
            most = max(most, have)
            if backoff.num_failures >= MAX_FAILURES:
                raise SourceUnreachable(
                    f"{file.name}: {failure} ({backoff.num_failures + 1} failures without progress); "
                    f"{have:,} of {file.size:,} bytes are kept, the next pull goes on from there"
                )
            delay_s = backoff.next_delay_s()
            self._config.sleep(delay_s if failure.after_s is None else max(delay_s, failure.after_s))
        return digest

    def _take_up(self, file: RemoteFile, part: Path) -> tuple[Hash, int]:
        """Hash what an earlier pull left; throw away what is longer than the file."""
        digest, have = new_hash(file), 0
        if part.exists() and part.stat().st_size > file.size:
            part.unlink()
        with contextlib.suppress(FileNotFoundError), part.open("rb") as content:
            while chunk := content.read(HASH_CHUNK_BYTES):
                digest.update(chunk)
                have += len(chunk)
        self._progress(have)
        return digest, have

    @contextlib.contextmanager
    def _writing(self, part: Path) -> Iterator[Callable[[bytes], None]]:
        """Append without a buffer: what counts as there is in the kernel's hands. Raises DiskFull."""
        try:
            with self._config.open_append(part) as out:

                def append(chunk: bytes) -> None:
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[out.write(rest) :]

                yield append
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"the disk is full at {part.parent}; what has arrived is kept") from error
            raise

    def _chunks(self, file: RemoteFile, url: str, start: int) -> Iterator[bytes]:
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with contextlib.ExitStack() as stack:
            response = self._open(stack, url, headers)
            if response.status_code == 200 and start:
                raise _Restart
            if response.status_code == 206 and not _starts_at(response, start):
                raise _Restart
            if response.status_code == 416:
                raise _Restart
            if response.status_code not in (200, 206):
                _refuse(file, response)
            left = file.size - start
            for chunk in response.iter_raw():
                if len(chunk) > left:
                    # Too long is as wrong as any wrong byte: the rest cannot change that.
                    yield chunk[:left]
                    return
                left -= len(chunk)
                yield chunk

    def _open(self, stack: contextlib.ExitStack, url: str, headers: dict[str, str]) -> httpx2.Response:
        """Follow redirects by hand: the token stays with the host that it is for."""
        first = urlsplit(url)
        for _ in range(MAX_REDIRECTS + 1):
            here = urlsplit(url)
            same_origin = (here.scheme, here.netloc) == (first.scheme, first.netloc)
            auth = {"Authorization": f"Bearer {self._config.token}"} if self._config.token and same_origin else {}
            response = stack.enter_context(self._client.stream("GET", url, headers={**headers, **auth}))
            location = response.headers.get("location")
            if response.status_code not in (301, 302, 303, 307, 308) or location is None:
                return response
            url = urljoin(url, location)
            if urlsplit(url).scheme not in (("https",) if first.scheme == "https" else ("http", "https")):
                raise RepositoryRefused("the source redirects from https to something else")
        raise Busy(f"more than {MAX_REDIRECTS} redirects")


class _Restart(Exception):
    """The server does not continue where we are."""


def _starts_at(response: httpx2.Response, start: int) -> bool:
    return str(response.headers.get("content-range", "")).startswith(f"bytes {start}-")


def _refuse(file: RemoteFile, response: httpx2.Response) -> None:
    status = response.status_code
    if status in RETRYABLE_STATUS:
        raise Busy(f"status {status}", retry_after_s(response.headers.get("retry-after")))
    if status in (401, 403):
        raise RepositoryRefused(f"{file.name}: access refused (status {status}); a gated model needs HF_TOKEN")
    raise RepositoryRefused(f"{file.name}: the source answers with status {status}")
