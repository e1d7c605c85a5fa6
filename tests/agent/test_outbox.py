"""Frames that wait: coalesced by time, split by size, bounded."""

from __future__ import annotations

import pytest

from shoal.agent.outbox import FLUSH_INTERVAL_S, MAX_BATCH_BYTES, MAX_OUTBOX_BYTES, Outbox, OutboxFull
from shoal.proto.v1 import generation_pb2, link_pb2


def outputs(*ids: str, text: str = "") -> link_pb2.AgentFrame:
    batch = [generation_pb2.Output(request_id=i, deltas=[generation_pb2.Delta(text=text)]) for i in ids]
    return link_pb2.AgentFrame(outputs=link_pb2.OutputBatch(outputs=batch))


LEAVING = link_pb2.AgentFrame(leaving=link_pb2.Leaving(reason="x"))


def test_at_once_when_idle_then_coalesced() -> None:
    box = Outbox()
    assert box.is_empty and box.ready_in(0.0) is None
    box.put(outputs("a"))
    assert box.ready_in(0.0) == 0.0
    (frame,) = box.take(0.0)
    assert [output.request_id for output in frame.outputs.outputs] == ["a"]
    box.put(outputs("b"))
    box.put(outputs("c", "d"))
    assert box.ready_in(0.001) == pytest.approx(FLUSH_INTERVAL_S - 0.001)
    assert box.ready_in(FLUSH_INTERVAL_S) == 0.0
    (frame,) = box.take(FLUSH_INTERVAL_S)
    assert [output.request_id for output in frame.outputs.outputs] == ["b", "c", "d"]
    assert box.is_empty


def test_control_frames_do_not_wait() -> None:
    box = Outbox()
    box.put(outputs("a"))
    box.take(0.0)
    box.put(outputs("b"))
    box.put(LEAVING)
    assert box.ready_in(0.001) == 0.0
    assert [frame.WhichOneof("frame") for frame in box.take(0.001)] == ["leaving", "outputs"]


def test_large_batches_are_split_in_order() -> None:
    box = Outbox()
    for index in range(10):
        box.put(outputs(str(index), text="x" * (MAX_BATCH_BYTES // 3)))
    frames = box.take(0.0)
    assert len(frames) == 5
    assert all(frame.ByteSize() < MAX_BATCH_BYTES * 1.1 for frame in frames)
    assert [output.request_id for frame in frames for output in frame.outputs.outputs] == list("0123456789")


def test_it_is_bounded() -> None:
    box = Outbox()
    piece = outputs("a", text="x" * (MAX_OUTBOX_BYTES // 8))
    with pytest.raises(OutboxFull):
        for _ in range(9):
            box.put(piece)
    assert len(box.take(0.0)) == 7
    box.put(piece)


def test_one_oversized_frame_may_pass_alone() -> None:
    box = Outbox()
    box.put(outputs("a", text="x" * (MAX_OUTBOX_BYTES + 1)))
    with pytest.raises(OutboxFull):
        box.put(LEAVING)
