"""Counters of a sequence and what follows from them."""

from __future__ import annotations

import pytest

from shoal.runtime.sequence import Sequence, SequenceStatus


def test_a_new_sequence_has_everything_before_it() -> None:
    sequence = Sequence(3, [5, 6, 7], max_new_tokens=2)
    assert sequence.status is SequenceStatus.WAITING
    assert (sequence.num_tokens, sequence.num_generated_tokens, sequence.num_uncomputed_tokens) == (3, 0, 3)
    assert not sequence.is_decoding
    assert not sequence.is_exhausted


def test_decoding_is_one_unread_id_that_was_generated() -> None:
    sequence = Sequence(0, [5], max_new_tokens=3)
    assert not sequence.is_decoding  # a prompt of one token is prefill all the same
    sequence.num_computed_tokens = 1
    sequence.token_ids.append(9)
    assert sequence.is_decoding
    sequence.num_computed_tokens = 0  # pre-empted
    assert not sequence.is_decoding


def test_the_last_id_needs_no_place_in_the_cache() -> None:
    assert Sequence(0, [1, 2], max_new_tokens=3).max_tokens_in_cache == 4
    assert Sequence(0, [1, 2], max_new_tokens=0).max_tokens_in_cache == 2


def test_an_answer_of_no_tokens_is_exhausted_by_its_prefill() -> None:
    sequence = Sequence(0, [1, 2], max_new_tokens=0)
    assert not sequence.is_exhausted
    sequence.num_computed_tokens = 2
    assert sequence.is_exhausted


def test_scoring_leaves_the_last_prompt_position_to_the_draw() -> None:
    assert Sequence(0, [1, 2, 3], max_new_tokens=1, scores_prompt=True).num_scored_tokens == 0
    assert Sequence(0, [1, 2, 3], max_new_tokens=1).num_scored_tokens == 2


@pytest.mark.parametrize(("prompt", "length"), [([], 1), ([1], -1)])
def test_impossible_sequences(prompt: list[int], length: int) -> None:
    with pytest.raises(ValueError, match="at least one prompt token"):
        Sequence(0, prompt, max_new_tokens=length)
