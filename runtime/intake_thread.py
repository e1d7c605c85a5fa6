"""The thread that turns frames into work: a long prompt is tokenised here while the others' steps go on."""

from __future__ import annotations

import threading
from collections.abc import Callable

from . import crash_report, wire
from .engine import refusal
from .errors import RuntimeFault
from .frame_pipe import Outbox
from .intake import MAX_CHOICES, Intake, PreparedRequest
from .mailbox import Mailbox
from .open_requests import OpenRequests
from .refusals import AnswerFailed, QueueFull, error_info

MAX_CALLS = 256
"""Tokenize and detokenize calls that wait."""

Call = wire.TokenizeCall | wire.DetokenizeCall
Work = PreparedRequest | wire.Abort


class IntakeThread:
    """`submit` from the reader's thread; everything else happens in its own."""

    def __init__(self, requests: OpenRequests, outbox: Outbox, work: Mailbox[Work]) -> None:
        self._requests = requests
        self._outbox = outbox
        self._work = work
        self._pending: Mailbox[tuple[wire.Request | Call, float | None]] = Mailbox()
        self._num_calls = 0
        self._calls_lock = threading.Lock()
        self._clock: Callable[[], float] | None = None

    def start(self, intake: Intake, clock: Callable[[], float]) -> None:
        """Once the model is loaded; what was submitted before has waited."""
        self._clock = clock
        threading.Thread(target=self._run, args=(intake, clock), name="intake", daemon=True).start()

    def submit(self, message: wire.Request | Call, num_bytes: int) -> None:
        """Never blocks on the model: takes the message, or answers at once that it cannot."""
        arrived_at = None if self._clock is None else self._clock()
        if isinstance(message, wire.Request):
            try:
                self._requests.open((message.request_id, message.attempt), num_bytes)
            except RuntimeFault as fault:
                self._refuse(message, fault)
                return
        elif not self._take_call():
            error = error_info(QueueFull(f"{MAX_CALLS} calls wait already"))
            self._outbox.put(wire.encode_frame(wire.CallResult(call_id=message.call_id, error=error)))
            return
        self._pending.put((message, arrived_at))

    def _take_call(self) -> bool:
        with self._calls_lock:
            if self._num_calls >= MAX_CALLS:
                return False
            self._num_calls += 1
            return True

    def _run(self, intake: Intake, clock: Callable[[], float]) -> None:
        while True:
            for message, arrived_at in self._pending.take_all(None):
                if isinstance(message, wire.Request):
                    self._prepare(intake, message, clock() if arrived_at is None else arrived_at)
                else:
                    self._answer(intake, message)

    def _prepare(self, intake: Intake, request: wire.Request, arrived_at: float) -> None:
        key = (request.request_id, request.attempt)
        if self._requests.is_aborted(key):
            self._requests.close(key)
            self._outbox.put(wire.encode_frame(wire.OutputBatch(outputs=_aborted(request))))
            return
        try:
            prepared = intake.prepare(request, arrived_at)
        except RuntimeFault as fault:
            self._requests.close(key)
            self._refuse(request, fault)
        except Exception as error:
            crash_report.write("a prompt failed", error)
            self._requests.close(key)
            self._refuse(request, AnswerFailed("the prompt could not be read"))
        else:
            self._work.put(prepared)

    def _answer(self, intake: Intake, call: Call) -> None:
        try:
            result = _call_result(intake, call)
        except RuntimeFault as fault:
            result = wire.CallResult(call_id=call.call_id, error=error_info(fault))
        except Exception as error:
            crash_report.write("a call failed", error)
            info = error_info(AnswerFailed("the call could not be answered"))
            result = wire.CallResult(call_id=call.call_id, error=info)
        with self._calls_lock:
            self._num_calls -= 1
        self._outbox.put(wire.encode_frame(result))

    def _refuse(self, request: wire.Request, fault: RuntimeFault) -> None:
        output = refusal(request.request_id, request.attempt, fault)
        self._outbox.put(wire.encode_frame(wire.OutputBatch(outputs=[output])))


def _call_result(intake: Intake, call: Call) -> wire.CallResult:
    if isinstance(call, wire.TokenizeCall):
        return wire.CallResult(call_id=call.call_id, token_ids=intake.token_ids(call.prompt))
    return wire.CallResult(call_id=call.call_id, text=intake.text(call.token_ids))


def _aborted(request: wire.Request) -> list[wire.Output]:
    """The end of a request that was aborted before the engine had it."""
    return [
        wire.Output(
            request_id=request.request_id,
            attempt=request.attempt,
            choice=choice,
            finish=wire.Finish(reason=wire.FinishReason.ABORT, usage=wire.Usage(0, 0), timings=wire.Timings()),
        )
        for choice in range(min(max(request.n, 1), MAX_CHOICES))
    ]
