"""What the engine refuses, beside what `errors` and `text_errors` name, and how any fault is told to a client.

    RequestInvalid
      FieldInvalid           a field is out of its range
      DuplicateRequest       the id and attempt of a request that runs
    RuntimeFault
      QueueFull              too many wait (retryable)
      OutputNotFinite        the model's output for this request overflowed
      AnswerFailed           a bug of ours, met by this request

The messages speak of fields and numbers, never of the text in them.
"""

from __future__ import annotations

from .errors import RequestInvalid, RuntimeFault
from .wire import ErrorInfo


class FieldInvalid(RequestInvalid):
    """`param` names the field, and the message opens with it."""

    code = "invalid_request"

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}", param)


class DuplicateRequest(RequestInvalid):
    """The engine knows requests by id and attempt; the first keeps them."""

    code = "duplicate_request"


class QueueFull(RuntimeFault):
    """A named bound is reached; the same request may succeed later."""

    code = "queue_full"
    retryable = True


class OutputNotFinite(RuntimeFault):
    """NaN or infinity where the next id was to be drawn. Other requests are not concerned."""

    code = "internal_error"


class AnswerFailed(RuntimeFault):
    """Its report is in the log, without the prompt and the answer. Other requests are not concerned."""

    code = "internal_error"


def error_info(fault: RuntimeFault) -> ErrorInfo:
    """The fault as the client is told."""
    param = fault.param if isinstance(fault, RequestInvalid) else ""
    return ErrorInfo(code=fault.code, message=str(fault), param=param, retryable=fault.retryable)
