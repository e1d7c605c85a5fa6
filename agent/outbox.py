"""What waits to be written on one stream: control frames at once, outputs coalesced by time, all of it bounded.

Pure: `now` is passed in. The writer asks `ready_in` how long the outputs may still gather, then takes everything as few frames.
"""

from __future__ import annotations

from collections.abc import Iterable

from shoal.proto.v1 import generation_pb2, link_pb2

FLUSH_INTERVAL_S = 0.004
"""Outputs that come within this time of the last flush wait for its end: 250 frames a second at most, none late to the eye."""

MAX_OUTBOX_BYTES = 64 * 1024 * 1024
"""Serialised bytes that may wait for a controller which does not read; beyond it the stream is given up."""

MAX_BATCH_BYTES = 1024 * 1024
"""A larger batch is sent as several frames, so that one frame stays far below the receiver's limit."""


class OutboxFull(Exception):
    """The controller does not read. Its stream must end."""


class Outbox:
    """Frames in order; outputs of one flush become one OutputBatch."""

    def __init__(self) -> None:
        self._control: list[link_pb2.AgentFrame] = []
        self._outputs: list[generation_pb2.Output] = []
        self._bytes = 0
        self._last_flush_at = float("-inf")

    @property
    def is_empty(self) -> bool:
        return not self._control and not self._outputs

    def put(self, frame: link_pb2.AgentFrame) -> None:
        """Queue a frame. Raises OutboxFull, and then the frame is not queued."""
        size = frame.ByteSize()
        if self._bytes + size > MAX_OUTBOX_BYTES and not self.is_empty:
            raise OutboxFull
        self._bytes += size
        if frame.WhichOneof("frame") == "outputs":
            self._outputs.extend(frame.outputs.outputs)
        else:
            self._control.append(frame)

    def ready_in(self, now: float) -> float | None:
        """Seconds until `take` should be called: 0 when at once, None when there is nothing."""
        if self._control:
            return 0.0
        if not self._outputs:
            return None
        return max(0.0, self._last_flush_at + FLUSH_INTERVAL_S - now)

    def take(self, now: float) -> list[link_pb2.AgentFrame]:
        """Everything that waits, control frames first."""
        frames, self._control = self._control, []
        if self._outputs:
            self._last_flush_at = now
            frames.extend(
                link_pb2.AgentFrame(outputs=link_pb2.OutputBatch(outputs=batch)) for batch in _batches(self._outputs)
            )
            self._outputs = []
        self._bytes = 0
        return frames


def _batches(outputs: Iterable[generation_pb2.Output]) -> Iterable[list[generation_pb2.Output]]:
    batch: list[generation_pb2.Output] = []
    size = 0
    for output in outputs:
        size += output.ByteSize()
        if batch and size > MAX_BATCH_BYTES:
            yield batch
            batch, size = [], output.ByteSize()
        batch.append(output)
    yield batch
