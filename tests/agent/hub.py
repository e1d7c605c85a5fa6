"""An imitation of the model hub: real HTTP on loopback, one repository, faults to order.

Serves the two routes that a pull uses: the listing with digests, and the bytes by commit, with ranges. Large files are
redirected to a second server (another port, so another origin), as the real one does with its storage.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from shoal.agent.hub import RemoteFile, Snapshot, wanted_files

REPO = "Qwen/Qwen3.5-0.8B"
LFS_FROM_BYTES = 10_000


@dataclass
class Request:
    path: str
    range: str
    authorization: str
    storage: bool


@dataclass
class Fault:
    """Consumed by the next request for the file. `cut_after` bytes are sent, then the connection ends."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    flip_at: int | None = None
    ignore_range: bool = False


class Hub:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.commit = "a" * 40
        self.old: dict[str, dict[str, bytes]] = {}
        self.requests: list[Request] = []
        self.faults: dict[str, list[Fault]] = {}
        self.licence: str | None = "apache-2.0"
        self.listing_status: list[int] = []
        self.extra_names: list[str] = []
        self.on_bytes: Callable[[str, int], None] = lambda name, sent: None
        self.url = self.storage_url = ""
        self.lock = threading.Lock()

    def move(self, files: dict[str, bytes], commit: str) -> None:
        """The branch moves on; the old commit can still be fetched."""
        self.old[self.commit] = self.files
        self.files, self.commit = files, commit

    def at(self, commit: str) -> dict[str, bytes]:
        return self.files if commit == self.commit else self.old.get(commit, {})

    def fault(self, name: str, *faults: Fault) -> None:
        self.faults.setdefault(name, []).extend(faults)

    def requests_for(self, name: str) -> list[Request]:
        return [request for request in self.requests if request.path.endswith("/" + name)]

    def listing(self) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = [
            {"rfilename": name, **_facts(content)} for name, content in self.files.items()
        ]
        siblings += [{"rfilename": name, "size": 1, "blobId": "0" * 40} for name in self.extra_names]
        card = {"license": self.licence} if self.licence is not None else {}
        return {"id": REPO, "modelId": REPO, "sha": self.commit, "siblings": siblings, "cardData": card, "tags": []}

    def snapshot(self) -> Snapshot:
        """What looking it up would give."""
        files = [RemoteFile(name, len(content), digest_of(content)) for name, content in self.files.items()]
        return Snapshot(self.url, REPO, self.commit, self.licence or "not stated", wanted_files(files))


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def digest_of(content: bytes) -> str:
    if len(content) >= LFS_FROM_BYTES:
        return f"sha256-{hashlib.sha256(content).hexdigest()}"
    return f"git-{git_sha1(content)}"


def _facts(content: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {"size": len(content), "blobId": git_sha1(content)}
    if len(content) >= LFS_FROM_BYTES:
        sha256 = hashlib.sha256(content).hexdigest()
        facts["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
    return facts


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    is_storage: bool

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append(
                Request(path, self.headers.get("Range", ""), self.headers.get("Authorization", ""), self.is_storage)
            )
        if path.startswith(f"/api/models/{REPO}"):
            status = self.hub.listing_status.pop(0) if self.hub.listing_status else 200
            self._answer(status, json.dumps(self.hub.listing()).encode(), {"X-Error-Code": ""})
            return
        prefix, _, rest = path.partition("/resolve/")
        commit, _, name = rest.partition("/")
        content = self.hub.at(commit).get(name)
        if prefix != f"/{REPO}" or content is None:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif len(content) >= LFS_FROM_BYTES and not self.is_storage:
            self._answer(302, b"", {"Location": f"{self.hub.storage_url}{self.path}"})
        else:
            self._bytes(name, content)

    def _bytes(self, name: str, content: bytes) -> None:
        with self.hub.lock:
            faults = self.hub.faults.get(name)
            fault = faults.pop(0) if faults else Fault()
        if fault.status:
            self._answer(fault.status, b"no", fault.headers)
            return
        start = 0
        if (text := self.headers.get("Range")) and not fault.ignore_range:
            start = int(text.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self._answer(416, b"", {})
                return
        if fault.flip_at is not None:
            wrong = bytes([content[fault.flip_at] ^ 1])
            content = content[: fault.flip_at] + wrong + content[fault.flip_at + 1 :]
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault.cut_after is not None:
            body = body[: fault.cut_after]
        with contextlib.suppress(OSError):
            for offset in range(0, len(body), 65536):
                self.wfile.write(body[offset : offset + 65536])
                self.hub.on_bytes(name, start + offset + 65536)
        if fault.cut_after is not None:
            self.close_connection = True

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    with contextlib.ExitStack() as stack:
        for is_storage in (False, True):
            handler = type("Handler", (_Handler,), {"hub": hub, "is_storage": is_storage})
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            url = f"http://127.0.0.1:{server.server_address[1]}"
            if is_storage:
                hub.storage_url = url
            else:
                hub.url = url
        yield hub
