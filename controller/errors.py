"""Everything that the controller refuses or loses, as one small tree, and the two tables that map it to a wire.

    ControllerError
      BadRequest            the client must change the request
        PayloadTooLarge
      NotFound              model, node, request or route
      Unauthorized / Forbidden
      MethodNotAllowed
      NoCapacity            every capable node is full: try again after `retry_after_s`
      Unavailable           nothing serves this now: try again after `retry_after_s`
      NodeLost              the node's link ended while it had the request
      EngineFailed          the node's engine died while it had the request
      DeadlineExceeded

Each carries a stable `code`, the error `type` of OpenAI's API, and whether the same request may succeed later.
"""

from __future__ import annotations

import grpc


class ControllerError(Exception):
    """Base of all. `param` is the path of the offending field, where there is one."""

    code = "internal_error"
    type = "server_error"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code

    def body(self) -> dict[str, dict[str, str | None]]:
        """The error object of the HTTP API."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class BadRequest(ControllerError):
    """A field is missing, of the wrong type, out of range or not supported."""

    code = "invalid_request"
    type = "invalid_request_error"


class PayloadTooLarge(BadRequest):
    """The body is beyond the limit; it was not read to its end."""

    code = "payload_too_large"


class NotFound(ControllerError):
    """The model, node, request or route is not known."""

    code = "not_found"
    type = "invalid_request_error"


class MethodNotAllowed(ControllerError):
    """The route exists, the method does not."""

    code = "method_not_allowed"
    type = "invalid_request_error"


class NoCapacity(ControllerError):
    """All capable nodes are at their limit and so is the queue."""

    code = "no_capacity"
    type = "rate_limit_error"
    retryable = True


class Unavailable(ControllerError):
    """No node serves the model at this moment."""

    code = "unavailable"
    type = "server_error"
    retryable = True


class NodeLost(ControllerError):
    """The node's link ended while it had the request."""

    code = "node_lost"
    type = "server_error"
    retryable = True


class EngineFailed(ControllerError):
    """The engine died, or could not do the step, while it had the request."""

    code = "engine_failed"
    type = "server_error"
    retryable = True


class DeadlineExceeded(ControllerError):
    """The client's deadline passed before the answer was complete."""

    code = "deadline_exceeded"
    type = "timeout_error"


HTTP_STATUS: dict[type[ControllerError], int] = {
    PayloadTooLarge: 413,
    BadRequest: 400,
    NotFound: 404,
    MethodNotAllowed: 405,
    NoCapacity: 429,
    Unavailable: 503,
    NodeLost: 503,
    EngineFailed: 503,
    DeadlineExceeded: 504,
    ControllerError: 500,
}

GRPC_STATUS: dict[type[ControllerError], grpc.StatusCode] = {
    PayloadTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    MethodNotAllowed: grpc.StatusCode.UNIMPLEMENTED,
    NoCapacity: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    NodeLost: grpc.StatusCode.UNAVAILABLE,
    EngineFailed: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    ControllerError: grpc.StatusCode.INTERNAL,
}


def http_status(error: ControllerError) -> int:
    """HTTP status of the error's class or its nearest base."""
    return next(HTTP_STATUS[c] for c in type(error).__mro__ if c in HTTP_STATUS)


def grpc_status(error: ControllerError) -> grpc.StatusCode:
    """gRPC status of the error's class or its nearest base."""
    return next(GRPC_STATUS[c] for c in type(error).__mro__ if c in GRPC_STATUS)
