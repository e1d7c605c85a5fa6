"""What is kept of a request once it has ended: whose, where, how much, how long, how it ended. Never what was said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shoal.proto.v1 import generation_pb2

FINISH_WORDS: dict[int, str] = {
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
    generation_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    generation_pb2.FINISH_REASON_ABORT: "abort",
    generation_pb2.FINISH_REASON_ERROR: "error",
    generation_pb2.FINISH_REASON_DEADLINE: "deadline",
}
"""The words of the ledger and of the label `finish_reason`; anything else is `error`."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One ended request. Durations in seconds; None where it ended before there was one to measure."""

    id: str
    model: str
    node: str
    """The node that had it, or `controller` when it ended in the queue."""
    attempts: int
    finish_reason: str
    """stop, length, tool_calls, abort, error or deadline; of several choices, that of choice 0."""
    error_code: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    received_at: float
    """Seconds since the epoch."""
    total_s: float
    """As the controller saw it, from arrival to the last output."""
    queue_s: float | None = None
    """Waiting for a credit here and for a place in the engine there."""
    prefill_s: float | None = None
    ttft_s: float | None = None
    """As the controller saw it, from arrival to the first output with an id."""
    decode_s: float | None = None
    is_part: bool = False
    """A later prompt of a request that its first prompt's record stands for: only its tokens are counted."""


class Recorder(Protocol):
    """Hears of each request once, at its end, and of each refusal."""

    def record(self, record: RequestRecord) -> None: ...

    def refuse(self, reason: str) -> None:
        """A request was turned away before it reached a node; `reason` is the error's code."""
        ...
