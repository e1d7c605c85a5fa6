"""Generation for gRPC clients: `Inference` of proto/v1/inference.proto, a thin edge on `backend.Backend`."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from typing import Any, NoReturn

from shoal.proto.v1 import inference_pb2, inference_pb2_grpc

from .backend import Backend, GenerateOptions
from .errors import BadRequest, ControllerError, grpc_status
from .request_check import check_model_name, check_prompt, check_request, check_size

log = logging.getLogger(__name__)

_Context = Any
"""grpc.aio's servicer context: `abort`, `time_remaining` and no more is used."""

NO_DEADLINE_S = 10 * 365 * 86400.0
"""gRPC reports a call without a deadline as one with an absurd one."""


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Every error of the tree becomes a status with the code and the field in trailing metadata.

    A message beyond the port's own limit never comes here: gRPC answers RESOURCE_EXHAUSTED.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: _Context
    ) -> AsyncIterator[inference_pb2.GenerateEvent]:
        """Cancelling the call closes the stream, and that frees the sequences."""
        try:
            check_size(request)
            check_request(request.request)
            options = GenerateOptions(new_request_id(), request.node_id or None, _timeout_s(context))
            stream = await self._backend.generate(request.request, options)
            try:
                async for outputs in stream:
                    for output in outputs:
                        yield inference_pb2.GenerateEvent(
                            request_id=stream.request_id,
                            node_id=stream.node_id,
                            attempts=stream.attempts,
                            output=output,
                        )
            finally:
                await stream.aclose()
        except ControllerError as error:
            await abort(context, error)

    async def ListModels(
        self, request: inference_pb2.ListModelsRequest, context: _Context
    ) -> inference_pb2.ListModelsResponse:
        return inference_pb2.ListModelsResponse(models=self._backend.models())

    async def Tokenize(
        self, request: inference_pb2.TokenizeRequest, context: _Context
    ) -> inference_pb2.TokenizeResponse:
        try:
            check_size(request)
            check_model_name(request.model)
            if request.prompt.WhichOneof("prompt") == "ids":
                raise BadRequest("ids are tokenized already", param="prompt.ids")
            if request.prompt.WhichOneof("prompt") != "text":  # an empty text has no tokens, which is an answer
                check_prompt(request.prompt)
            ids = await self._backend.tokenize(request.model, request.prompt)
        except ControllerError as error:
            await abort(context, error)
        return inference_pb2.TokenizeResponse(token_ids=ids, count=len(ids))


def new_request_id() -> str:
    """Unguessable, unique without asking anybody."""
    return f"req-{secrets.token_hex(12)}"


def _timeout_s(context: _Context) -> float | None:
    remaining: float | None = context.time_remaining()
    return None if remaining is None or remaining > NO_DEADLINE_S else remaining


async def abort(context: _Context, error: ControllerError) -> NoReturn:
    """End the call with the error's status; code, field and Retry-After in trailing metadata."""
    metadata = [("shoal-error-code", _ascii(error.code))]
    if error.param is not None:
        metadata.append(("shoal-error-param", _ascii(error.param)))
    if error.retry_after_s is not None:
        metadata.append(("retry-after", f"{error.retry_after_s:.0f}"))
    await context.abort(grpc_status(error), error.message, tuple(metadata))
    raise AssertionError("abort returned")


def _ascii(text: str) -> str:
    """Metadata values are printable ASCII."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:256]
