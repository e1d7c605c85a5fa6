"""The two generation routes, as plain ASGI callables: nothing stands between a flush and the socket.

A request is answered in one task while another waits for the client to go away; whichever ends first ends the other, and
the backend hears of it at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager

from starlette.types import Receive, Scope, Send

from . import sse
from .backend import Backend, GenerateOptions
from .errors import ControllerError, MethodNotAllowed, NoCapacity
from .http_body import ClientGone, pinned_node, read_body, request_id, wait_gone
from .http_reply import send_error, send_stream_start, send_whole
from .openai_ask import Ask
from .openai_fan_in import FanIn, Flush, run_one
from .openai_writer import AnswerWriter, Dialect, Source

MAX_OPEN_REQUESTS = 4096
"""Generation requests of all clients that are being read or answered."""

AUTO = "auto"

_log = logging.getLogger(__name__)


class OpenRequests:
    """The ids of what is being answered: bounded, and no two alike even where clients choose them."""

    def __init__(self, limit: int = MAX_OPEN_REQUESTS) -> None:
        self._limit = limit
        self._ids: set[str] = set()
        self._num_renamed = 0

    def __len__(self) -> int:
        return len(self._ids)

    @contextmanager
    def opened(self, wanted_id: str) -> Iterator[str]:
        """The id under which the request runs: the wanted one unless that is taken. Raises NoCapacity."""
        if len(self._ids) >= self._limit:
            raise NoCapacity(f"{self._limit} requests are open", code="too_many_requests", retry_after_s=1.0)
        given = wanted_id
        while given in self._ids:
            self._num_renamed += 1
            given = f"{wanted_id}~{self._num_renamed}"
        self._ids.add(given)
        try:
            yield given
        finally:
            self._ids.discard(given)


class GenerationRoute:
    """POST of one dialect."""

    def __init__(self, dialect: Dialect, backend: Backend, open_requests: OpenRequests) -> None:
        self._dialect = dialect
        self._backend = backend
        self._open = open_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        wanted_id = request_id(headers)
        if scope["method"] != "POST":
            error = MethodNotAllowed(f"{scope['method']} is not allowed here, POST is")
            await send_error(send, error, [(b"allow", b"POST"), (b"x-request-id", wanted_id.encode())])
            return
        try:
            with self._open.opened(wanted_id) as given_id:
                options = GenerateOptions(given_id, pinned_node(headers))
                ask = self._dialect.decode(await read_body(headers, receive))
                await self._answer_while_present(ask, options, receive, send)
        except ControllerError as error:
            await send_error(send, error, [(b"x-request-id", wanted_id.encode())])
        except ClientGone:
            return

    async def _answer_while_present(self, ask: Ask, options: GenerateOptions, receive: Receive, send: Send) -> None:
        """Nothing but cancellation comes out of the answer, so the group never fails."""
        async with asyncio.TaskGroup() as group:
            if len(ask.requests) == 1:
                flushes = run_one(self._backend, ask.requests[0], options)
                feeder = None
            else:
                fan_in = FanIn(self._backend, ask.requests, options)
                flushes = fan_in.flushes()
                feeder = group.create_task(fan_in.run(), name=f"prompts of {options.request_id}")
            answer = group.create_task(self._answer(ask, flushes, options, send), name=f"answer {options.request_id}")
            gone = group.create_task(wait_gone(receive), name=f"presence {options.request_id}")
            gone.add_done_callback(lambda _: answer.cancel())
            answer.add_done_callback(lambda _: gone.cancel())
            if feeder is not None:
                answer.add_done_callback(lambda _: feeder.cancel())

    async def _answer(
        self, ask: Ask, flushes: AsyncGenerator[Flush, None], options: GenerateOptions, send: Send
    ) -> None:
        reply = _Reply(send, options.request_id)
        try:
            model = served_name(self._backend, ask.model, options.node_id)
            writer = AnswerWriter(
                self._dialect, ask.form, request_id=options.request_id, model=model, created=int(time.time())
            )
            async with aclosing(flushes):
                if ask.form.is_stream:
                    await _stream(writer, flushes, reply)
                else:
                    source = await _gather(writer, flushes)
            # The last bytes go out after the backend's stream was closed: to send them ends the request.
            if ask.form.is_stream:
                await reply.end(sse.DONE)
            else:
                await reply.whole(writer.body(source), source)
        except ControllerError as error:
            await reply.fail(error)
        except Exception as error:
            # The message of an exception may quote what a client sent; its place in the code does not.
            place = "".join(traceback.format_tb(error.__traceback__))
            _log.error("request %s failed in the gateway: %s\n%s", options.request_id, type(error).__name__, place)
            await reply.fail(ControllerError("the gateway failed; the request may be tried again"))


async def _stream(writer: AnswerWriter, flushes: AsyncIterator[Flush], reply: _Reply) -> None:
    async for index, outputs, source in flushes:
        events = writer.events(index, outputs, source)
        if events:
            await reply.events(events, source)
    _check_complete(writer)


async def _gather(writer: AnswerWriter, flushes: AsyncIterator[Flush]) -> Source:
    source: Source | None = None
    async for index, outputs, came_from in flushes:
        writer.keep(index, outputs)
        source = came_from
    _check_complete(writer)
    assert source is not None, "a complete answer had outputs"
    return source


def _check_complete(writer: AnswerWriter) -> None:
    if not writer.is_complete:
        raise ControllerError("the answer ended before it was complete")


class _Reply:
    """Status and headers wait for the first output, so that a refusal still has its own status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._id_header = (b"x-request-id", request_id.encode())
        self._is_started = False

    async def events(self, events: bytes, source: Source) -> None:
        """Part of a stream."""
        if not self._is_started:
            self._is_started = True
            await send_stream_start(self._send, self._headers(source))
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self, last: bytes) -> None:
        """The end of a stream. Whatever is complete has begun: an end is an event."""
        await self._send({"type": "http.response.body", "body": last})

    async def whole(self, body: bytes, source: Source) -> None:
        """The answer as one body."""
        self._is_started = True
        await send_whole(self._send, 200, body, self._headers(source))

    async def fail(self, error: ControllerError) -> None:
        """The error object: under its own status, or as the last event of a stream, which then has no [DONE]."""
        if self._is_started:
            await self._send({"type": "http.response.body", "body": sse.event(error.body())})
        else:
            await send_error(self._send, error, [self._id_header])

    def _headers(self, source: Source) -> list[tuple[bytes, bytes]]:
        return [
            self._id_header,
            (b"x-shoal-node", source.node_id.encode("latin-1", "replace")),
            (b"x-shoal-attempts", str(source.attempts).encode()),
        ]


def served_name(backend: Backend, model: str, node_id: str | None) -> str:
    """What `auto` stands for at this moment; any other name is itself."""
    if model != AUTO:
        return model
    if node_id is not None:
        return next((node.state.model.name for node in backend.nodes() if node.id == node_id), model)
    models = backend.models()
    return models[0].id if models else model
