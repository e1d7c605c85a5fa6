"""The gateway over real sockets: clients that go away, bodies and heads beyond the bounds, a server that ends."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import pytest
from shoal_fake_backend import FakeBackend, byte_answer, served

from shoal.controller.http_server import serve

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
HI = {"model": "tiny", "prompt": "Hi"}


def endless(request: Any, options: Any) -> list[Any]:
    return [*byte_answer(request, "Hello")[:3], 60.0]


def raw_post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def opened(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("prompt", ["Hi", ["a", "b", "c"]], ids=["one", "several"])
async def test_a_client_that_goes_away_closes_the_streams_at_once(is_stream: bool, prompt: Any) -> None:
    backend = FakeBackend(endless)
    num_streams = 1 if prompt == "Hi" else 3
    async with served(backend) as url:
        reader, writer = await opened(url)
        writer.write(raw_post(TEXTS, json.dumps(HI | {"stream": is_stream, "prompt": prompt}).encode()))
        if is_stream:
            assert b"200 OK" in await reader.readline()
        while len(backend.streams) < num_streams:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        assert not any(stream.closed.is_set() for stream in backend.streams)
        writer.close()
        async with asyncio.timeout(1):
            for stream in backend.streams:
                await stream.closed.wait()


async def test_a_client_that_goes_away_while_it_waits_for_a_slot_is_forgotten() -> None:
    cancelled = asyncio.Event()

    class Full(FakeBackend):
        async def generate(self, request: Any, options: Any) -> Any:
            self.options.append(options)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

    backend = Full()
    async with served(backend) as url:
        _, writer = await opened(url)
        writer.write(raw_post(CHAT, json.dumps(HELLO).encode()))
        while not backend.options:
            await asyncio.sleep(0.005)
        writer.close()
        async with asyncio.timeout(1):
            await cancelled.wait()


async def test_chunks_leave_as_they_come() -> None:
    def script(request: Any, options: Any) -> list[Any]:
        first, *rest = byte_answer(request, "ab")
        return [first, 0.15, *rest]

    async with served(FakeBackend(script)) as url:
        reader, writer = await opened(url)
        writer.write(raw_post(TEXTS, json.dumps(HI | {"stream": True}).encode()))
        start = time.monotonic()
        await reader.readuntil(b'"text":"a"')
        first_s = time.monotonic() - start
        await reader.readuntil(b"[DONE]")
        assert time.monotonic() - start > 0.14 > first_s
        writer.close()


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async with served(FakeBackend()) as url:
        reader, writer = await opened(url)
        for _ in range(3):
            writer.write(raw_post(CHAT, json.dumps(HELLO | {"stream": True}).encode()))
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"text/event-stream" in head and b"server:" not in head
            await reader.readuntil(b"0\r\n\r\n")
        writer.close()


@pytest.mark.parametrize("path", [CHAT, TEXTS, "/tokenize", "/detokenize"])
async def test_ten_megabytes_are_refused_with_and_without_a_length(path: str) -> None:
    body = b'{"model":"tiny","user":"' + b"x" * 10_000_000 + b'"}'
    async with served(FakeBackend()) as url:
        for is_chunked in (False, True):
            reader, writer = await opened(url)
            if is_chunked:
                writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
                writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            else:
                writer.write(raw_post(path, body))
            answer = await reader.readuntil(b"}}")
            assert b" 413 " in answer.splitlines()[0]
            assert b'"payload_too_large"' in answer
            # The same connection still works.
            await writer.drain()
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"ok")
            writer.close()


async def test_a_refused_length_is_answered_before_the_body_comes() -> None:
    async with served(FakeBackend()) as url:
        reader, writer = await opened(url)
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert b" 413 " in await reader.readline()
        writer.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GARBAGE\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", b"431"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"431"),
    ],
    ids=["garbage", "long", "many", "path"],
)
async def test_heads_beyond_the_bounds_are_refused(request_bytes: bytes, status: bytes) -> None:
    async with served(FakeBackend()) as url:
        reader, writer = await opened(url)
        writer.write(request_bytes)
        answer = await reader.read()
        assert answer.split()[1] == status
        head, _, body = answer.partition(b"\r\n\r\n")
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        writer.close()


async def test_a_closing_server_lets_answers_end_and_frees_its_port() -> None:
    def script(request: Any, options: Any) -> list[Any]:
        first, *rest = byte_answer(request, "ab")
        return [first, 0.3, *rest]

    backend = FakeBackend(script)
    async with served(backend) as url:
        reader, writer = await opened(url)
        writer.write(raw_post(TEXTS, json.dumps(HI | {"stream": True}).encode()))
        await reader.readuntil(b'"text":"a"')
    assert b"[DONE]" in await reader.read()
    writer.close()
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.socket() as probe:
        assert probe.connect_ex((host, int(port))) != 0


async def test_a_closing_server_cuts_what_does_not_end() -> None:
    backend = FakeBackend(endless)
    start = time.monotonic()
    async with served(backend) as url:
        reader, writer = await opened(url)
        writer.write(raw_post(TEXTS, json.dumps(HI | {"stream": True}).encode()))
        await reader.readuntil(b'"text":"H"')
    assert time.monotonic() - start < 4
    async with asyncio.timeout(1):
        await backend.streams[0].closed.wait()
    writer.close()


async def test_an_address_in_use_is_an_error_at_once() -> None:
    async with served(FakeBackend()) as url:
        with pytest.raises(OSError):
            await serve(lambda *_: None, "127.0.0.1", int(url.rpartition(":")[2]))  # type: ignore[arg-type, return-value]
