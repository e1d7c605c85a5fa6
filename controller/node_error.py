"""What a node's refusal or failure means to the client: the link's Error -> our tree. Pure."""

from __future__ import annotations

from shoal.proto.v1 import generation_pb2

from .errors import BadRequest, ControllerError, DeadlineExceeded, EngineFailed, NodeLost, Unavailable

RETRY_AFTER_S = 1.0
"""A node that leaves, or whose queue is full, is usually replaced or free within this."""

_BUSY = frozenset({"queue_full", "node_leaving"})
_BROKEN = frozenset({"runtime_fault", "internal_error", "load_failed"})


def error_of(finish: generation_pb2.Finish, node_id: str) -> ControllerError | None:
    """The error that ends the request; None when the choice finished as asked."""
    if finish.reason == generation_pb2.FINISH_REASON_DEADLINE:
        return DeadlineExceeded("the deadline passed before the answer was complete")
    if finish.reason == generation_pb2.FINISH_REASON_ABORT:
        return EngineFailed(f"node {node_id} gave the request up")
    if finish.reason == generation_pb2.FINISH_REASON_ERROR:
        return call_error(finish.error, node_id)
    return None


def call_error(error: generation_pb2.Error, node_id: str) -> ControllerError:
    """The same for an Error by itself."""
    code, message = error.code or "engine_failed", error.message or f"node {node_id} failed without a reason"
    param = error.param or None
    if code in _BUSY:
        return Unavailable(message, code=code, retry_after_s=RETRY_AFTER_S)
    if code == NodeLost.code:
        return NodeLost(message)
    if code == DeadlineExceeded.code:
        return DeadlineExceeded(message)
    if error.retryable or code in _BROKEN:
        return EngineFailed(message, code=code, retry_after_s=RETRY_AFTER_S if error.retryable else None)
    return BadRequest(message, param=param, code=code)
