"""The gateway as a server: routes, statuses, failures before and inside a stream, clients that go away, limits."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal_fake_backend import (
    FakeBackend,
    byte_answer,
    connected,
    events_of,
)

from shoal.controller.errors import (
    BadRequest,
    ControllerError,
    DeadlineExceeded,
    EngineFailed,
    NoCapacity,
    NodeLost,
    NotFound,
    Unavailable,
)

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
HI = {"model": "tiny", "prompt": "Hi"}


def failing(error: Exception, *, after: int) -> FakeBackend:
    return FakeBackend(lambda request, options: [*byte_answer(request, "Hello")[:after], error])


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("user")
NAMES = st.sampled_from(
    "model messages prompt tokens role content type text n stream max_tokens stop echo tools".split()
)
JSON = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=8
)
BODIES = st.binary(max_size=30) | st.dictionaries(NAMES, JSON, max_size=5).map(
    lambda fields: json.dumps({"model": "tiny"} | fields).encode()
)


async def test_service_routes() -> None:
    backend = FakeBackend()
    async with connected(backend) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        assert (await client.get("/readyz")).status_code == 200
        page = await client.get("/metrics", headers={"accept": "text/x"})
        assert page.text == "# accept text/x\n"
        assert page.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
        backend.fleet = []
        assert (await client.get("/healthz")).status_code == 200
        waiting = await client.get("/readyz")
        assert waiting.status_code == 503
        assert waiting.json()["error"]["code"] == "not_ready"
        assert int(waiting.headers["retry-after"]) >= 1


async def test_models_and_the_alias() -> None:
    async with connected(FakeBackend()) as client:
        listed = (await client.get("/v1/models")).json()
        assert listed["object"] == "list"
        assert [(model["id"], model["root"]) for model in listed["data"]] == [("tiny", "tiny"), ("auto", "tiny")]
        shown = (await client.get("/v1/models/tiny")).json()
        assert shown == listed["data"][0]
        assert shown["max_model_len"] == 512
        assert (shown["owned_by"], shown["format"], shown["capabilities"]) == ("shoal", "int8", ["tools"])
        missing = await client.get("/v1/models/Some/Other")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "model_not_found"


async def test_tokenize_and_back() -> None:
    backend = FakeBackend()
    async with connected(backend) as client:
        found = (await client.post("/tokenize", json={"model": "tiny", "prompt": "Hé"})).json()
        assert found == {"tokens": list("Hé".encode()), "count": 3}
        back = await client.post("/detokenize", json={"model": "tiny", "tokens": found["tokens"]})
        assert back.json() == {"prompt": "Hé"}
        asked = {"model": "tiny", "messages": HELLO["messages"], "add_generation_prompt": False}
        assert (await client.post("/tokenize", json=asked)).json()["count"] > 0
        for path, body, param in (
            ("/tokenize", {"model": "tiny"}, "prompt"),
            ("/tokenize", {"model": "tiny", "prompt": "a", "messages": HELLO["messages"]}, "messages"),
            ("/tokenize", {"model": "tiny", "messages": []}, "messages"),
            ("/tokenize", {"model": "tiny", "prompt": 5}, "prompt"),
            ("/detokenize", {"model": "tiny"}, "tokens"),
            ("/detokenize", {"model": "tiny", "tokens": [1, -1]}, "tokens[1]"),
        ):
            refused = await client.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_unknown_routes_and_methods_have_the_error_object() -> None:
    async with connected(FakeBackend()) as client:
        for method, path, status in (
            ("GET", "/v1/nothing", 404),
            ("GET", CHAT, 405),
            ("DELETE", TEXTS, 405),
            ("POST", "/v1/models", 405),
            ("GET", "/tokenize", 405),
            ("POST", "/healthz", 405),
        ):
            refused = await client.request(method, path)
            assert refused.status_code == status
            error = refused.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == ("route_not_found" if status == 404 else "method_not_allowed")
            if status == 405:
                assert refused.headers["allow"]


STATUSES: list[tuple[ControllerError, int]] = [
    (BadRequest("no", param="prompt[3]"), 400),
    (NotFound("no", code="node_not_found"), 404),
    (NoCapacity("full", retry_after_s=2.2), 429),
    (Unavailable("none"), 503),
    (NodeLost("lost"), 503),
    (EngineFailed("dead"), 503),
    (DeadlineExceeded("late"), 504),
    (ControllerError("bug"), 500),
]


@pytest.mark.parametrize(("error", "status"), STATUSES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_refusal_has_its_own_status_even_for_a_stream(
    error: ControllerError, status: int, is_stream: bool
) -> None:
    for backend in (FakeBackend(refusal=error), failing(error, after=0)):
        async with connected(backend) as client:
            refused = await client.post(CHAT, json=HELLO | {"stream": is_stream}, headers={"X-Request-Id": "q1"})
        assert refused.status_code == status
        assert refused.json() == error.body()
        assert refused.headers["x-request-id"] == "q1"
        if status in (429, 503):
            assert refused.headers["retry-after"] == ("3" if status == 429 else "1")


@pytest.mark.parametrize("path", [CHAT, TEXTS])
async def test_a_failure_inside_a_stream_is_its_last_event(path: str) -> None:
    error = EngineFailed("the engine died")
    backend = failing(error, after=3)
    async with connected(backend) as client:
        streamed = await client.post(path, json=HELLO | HI | {"stream": True})
        whole = await client.post(path, json=HELLO | HI)
    assert streamed.status_code == 200
    events = events_of(streamed.text)
    assert len(events) == 4
    assert events[-1] == error.body()
    assert (whole.status_code, whole.json()) == (503, error.body())
    assert all(stream.closed.is_set() for stream in backend.streams)


async def test_an_answer_that_just_stops_is_an_error() -> None:
    backend = FakeBackend(lambda request, options: byte_answer(request, "Hello")[:2])
    async with connected(backend) as client:
        assert (await client.post(CHAT, json=HELLO)).status_code == 500
        events = events_of((await client.post(CHAT, json=HELLO | {"stream": True})).text)
    assert events[-1]["error"]["code"] == "internal_error"


async def test_a_bug_is_a_500_without_words_of_the_request(caplog: pytest.LogCaptureFixture) -> None:
    backend = failing(ValueError("secret prompt"), after=1)
    async with connected(backend) as client:
        failed = await client.post(TEXTS, json=HI)
        batch = await client.post(TEXTS, json=HI | {"prompt": ["a", "b"]})
    for response in (failed, batch):
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"
        assert "secret" not in response.text
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


async def test_a_refused_prompt_of_several_is_named_by_its_place() -> None:
    def script(request: Any, options: Any) -> list[Any]:
        if request.prompt.ids.token_ids[0] == 7:
            return [BadRequest("no such id", param="prompt[0]")]
        return byte_answer(request, "ok")

    backend = FakeBackend(script)
    async with connected(backend) as client:
        refused = await client.post(TEXTS, json=HI | {"prompt": [[5], [6], [7], [8]]})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "prompt[2][0]"
    assert all(stream.closed.is_set() for stream in backend.streams)


async def test_ids_of_open_requests_never_clash() -> None:
    release = asyncio.Event()

    class Slow(FakeBackend):
        async def generate(self, request: Any, options: Any) -> Any:
            stream = await super().generate(request, options)
            await release.wait()
            return stream

    backend = Slow()
    async with connected(backend) as client, asyncio.TaskGroup() as group:
        posts = [group.create_task(client.post(CHAT, json=HELLO, headers={"X-Request-Id": "same"})) for _ in range(3)]
        while len(backend.options) < 3:
            await asyncio.sleep(0)
        release.set()
    ids = [post.result().headers["x-request-id"] for post in posts]
    assert "same" in ids and len(set(ids)) == 3
    assert {options.request_id for options in backend.options} == set(ids)


@pytest.mark.parametrize("given", ["a b", "x" * 101, "", "é", "-x"])
async def test_odd_request_ids_are_replaced(given: str) -> None:
    async with connected(FakeBackend()) as client:
        response = await client.post(CHAT, json=HELLO, headers={"X-Request-Id": given.encode("latin-1")})
    assert response.headers["x-request-id"] not in ("", given)


@given(st.sampled_from([CHAT, TEXTS, "/tokenize", "/detokenize"]), BODIES)
def test_no_body_is_a_500(path: str, body: bytes) -> None:
    async def post() -> int:
        async with connected(FakeBackend()) as client:
            response = await client.post(path, content=body)
        if response.status_code != 200:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        return response.status_code

    assert asyncio.run(post()) in (200, 400, 404)
