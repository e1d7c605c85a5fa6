"""The prompts of one request as one sequence of flushes. All of them run on the node that took the first."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence

from shoal.proto.v1 import generation_pb2

from .backend import Backend, GenerateOptions
from .errors import BadRequest, ControllerError
from .openai_writer import Source

MAX_PROMPTS_IN_FLIGHT = 8
"""Prompts of one request that run, or wait for a slot, side by side: one client does not fill the queue."""

MAX_QUEUED_FLUSHES = 64
"""Flushes that wait for the writer before the prompts' readers wait for it."""

Outputs = list[generation_pb2.Output]
Flush = tuple[int, Outputs, Source]
"""Index of the prompt, what it brings, and where from."""

_PROMPT_PARAM = re.compile(r"^prompt(?=$|\[)")


async def run_one(
    backend: Backend, request: generation_pb2.GenerationRequest, options: GenerateOptions
) -> AsyncGenerator[Flush, None]:
    """A single prompt: no queue between it and the writer. To be closed by whoever stops early."""
    stream = await backend.generate(request, options)
    try:
        async for outputs in stream:
            yield 0, outputs, Source(stream.node_id, stream.attempts)
    finally:
        await stream.aclose()


class FanIn:
    """Several prompts; `flushes` ends with the last of them, or raises the first error of any."""

    def __init__(
        self, backend: Backend, requests: Sequence[generation_pb2.GenerationRequest], options: GenerateOptions
    ) -> None:
        self._backend = backend
        self._requests = requests
        self._options = options
        self._queue: asyncio.Queue[Flush | Exception | None] = asyncio.Queue(MAX_QUEUED_FLUSHES)
        self._node_id: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._slots = asyncio.Semaphore(MAX_PROMPTS_IN_FLIGHT)

    async def run(self) -> None:
        """Feeds `flushes`; runs in a task of its own, and cancelling it cancels every prompt."""
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(len(self._requests)):
                    # The first comes alone: it decides on the node.
                    await self._slots.acquire()
                    group.create_task(self._one(index), name=f"prompt {index}")
                    if index == 0:
                        await self._node_id
        except ExceptionGroup as group_error:
            await self._queue.put(_first_error(group_error))
        else:
            await self._queue.put(None)

    async def flushes(self) -> AsyncGenerator[Flush, None]:
        """Until every prompt has ended. Raises the first error of any of them."""
        while True:
            item = await self._queue.get()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item

    async def _one(self, index: int) -> None:
        try:
            options = self._options
            if index:
                part_id = f"{options.request_id}-{index}"
                options = GenerateOptions(part_id, self._node_id.result(), options.timeout_s, is_part=True)
            stream = await self._backend.generate(self._requests[index], options)
            if not self._node_id.done():
                self._node_id.set_result(stream.node_id)
            try:
                async for outputs in stream:
                    await self._queue.put((index, outputs, Source(stream.node_id, stream.attempts)))
            finally:
                await stream.aclose()
        except BadRequest as error:
            raise _of_prompt(error, index) from error
        finally:
            self._slots.release()


def _of_prompt(error: BadRequest, index: int) -> BadRequest:
    """The same refusal with the prompt's place in the client's list: prompt[3] of the second is prompt[1][3]."""
    if error.param is None or not _PROMPT_PARAM.match(error.param):
        return error
    param = _PROMPT_PARAM.sub(f"prompt[{index}]", error.param)
    return type(error)(error.message, param=param, code=error.code, retry_after_s=error.retry_after_s)


def _first_error(group: ExceptionGroup[Exception]) -> Exception:
    """What the client can be told of, before what is our own mistake."""
    return next((error for error in group.exceptions if isinstance(error, ControllerError)), group.exceptions[0])
