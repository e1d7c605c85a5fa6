"""One request at one node, and the record of its end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from shoal.proto.v1 import generation_pb2

from .answer import Answer
from .continuity import Continuity
from .errors import ControllerError, DeadlineExceeded
from .frame_check import CONTROLLER_NODE_ID
from .request_record import RequestRecord
from .router import Choice, Wanted


@dataclass(slots=True, eq=False)
class Flight:
    """Only dispatch writes it. Instants are monotonic seconds but for `wall_received_at`, seconds since the epoch."""

    answer: Answer
    wanted: Wanted
    choice: Choice
    generation: int
    """Of the node when the request was sent there."""
    progress: Continuity
    received_at: float
    wall_received_at: float
    sent_at: float
    first_id_at: float | None = None
    error: ControllerError | None = None
    end_word: str | None = None
    """Set when it was cancelled: abort, deadline or error."""
    deadline_timer: asyncio.TimerHandle | None = None
    confirm_timer: asyncio.TimerHandle | None = None

    @property
    def waited_s(self) -> float:
        """Time without a credit. The client's clock started here; the engine's with the frame."""
        return self.sent_at - self.received_at

    def stop_timers(self) -> None:
        for timer in (self.deadline_timer, self.confirm_timer):
            if timer is not None:
                timer.cancel()


def flight_record(flight: Flight, word: str, error: ControllerError | None, now: float) -> RequestRecord:
    """What is kept of it. Call it once, at the end."""
    progress = flight.progress
    finish = progress.finishes.get(0) or next(iter(progress.finishes.values()), generation_pb2.Finish())
    # A request that failed has no timings of its own; zeros would be measurements that nobody made.
    timings = finish.timings if finish.timings.total_s > flight.waited_s else None
    return RequestRecord(
        id=flight.answer.request_id,
        model=flight.wanted.model,
        node=flight.choice.node.id,
        attempts=flight.answer.attempts,
        finish_reason=word,
        error_code=error.code if error is not None else None,
        prompt_tokens=finish.usage.prompt_tokens or progress.num_prompt_tokens,
        completion_tokens=progress.num_generated,
        cached_tokens=finish.usage.cached_tokens,
        received_at=flight.wall_received_at,
        total_s=now - flight.received_at,
        queue_s=timings.queue_s if timings is not None else None,
        prefill_s=timings.prefill_s if timings is not None else None,
        ttft_s=None if flight.first_id_at is None else flight.first_id_at - flight.received_at,
        decode_s=timings.decode_s if timings is not None else None,
        is_part=flight.wanted.is_part,
    )


def unplaced_record(request_id: str, wanted: Wanted, received_at: float, total_s: float, word: str) -> RequestRecord:
    """The same for a request that ended in the queue: its client left, or its deadline passed."""
    return RequestRecord(
        id=request_id,
        model=wanted.model,
        node=CONTROLLER_NODE_ID,
        attempts=0,
        finish_reason=word,
        error_code=DeadlineExceeded.code if word == "deadline" else None,
        prompt_tokens=0,
        completion_tokens=0,
        cached_tokens=0,
        received_at=received_at,
        total_s=total_s,
        queue_s=total_s,
        is_part=wanted.is_part,
    )
