"""Outputs that continue, repeat, or leave a gap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal_fake_fleet import output

from shoal.controller.continuity import Broken, Continuity
from shoal.proto.v1 import generation_pb2

STOP, ERROR = generation_pb2.FINISH_REASON_STOP, generation_pb2.FINISH_REASON_ERROR


@given(st.lists(st.integers(0, 4), max_size=12), st.data())
def test_however_an_answer_is_cut_and_repeated_each_id_counts_once(lengths: list[int], data: st.DataObject) -> None:
    progress, sent, accepted = Continuity(1), [], []
    for number, length in enumerate(lengths):
        start = sum(lengths[:number])
        piece = output("r", start, range(start, start + length))
        if length:
            sent.append(piece)
        if progress.accepts(piece):
            accepted += list(piece.token_ids)
        if sent:
            assert not progress.accepts(data.draw(st.sampled_from(sent)))
    assert accepted == list(range(sum(lengths)))
    assert progress.num_generated == sum(lengths)


def test_gaps_overlaps_and_strange_choices_break_the_stream() -> None:
    for piece in (output("r", 3, [1]), output("r", 3, []), output("r", 1, [1, 2]), output("r", 0, [1], choice=2)):
        progress = Continuity(2)
        assert progress.accepts(output("r", 0, [5, 6]))
        with pytest.raises(Broken):
            progress.accepts(piece)


def test_a_request_is_complete_when_all_choices_are_or_one_failed() -> None:
    progress = Continuity(2)
    assert progress.accepts(output("r", 0, [1], STOP, choice=1)) and not progress.is_complete
    assert not progress.accepts(output("r", 1, [2], choice=1))
    assert progress.accepts(output("r", 0, [], STOP)) and progress.is_complete
    refused = Continuity(2)
    assert refused.accepts(output("r", 0, [], ERROR)) and refused.is_complete
