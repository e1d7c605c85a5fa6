"""Books of blocks and slots: nothing leaked, nothing owned twice, refusals change nothing."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from shoal.runtime.block_manager import BlockManager, BooksError


def test_admission_takes_a_slot_and_the_blocks_of_all_positions() -> None:
    books = BlockManager(num_blocks=5, num_slots=2, block_tokens=4)
    assert books.admit(7, 9)
    assert len(books.table(7)) == 3
    assert (books.num_used_blocks, books.num_free_blocks) == (3, 2)
    assert (books.num_used_slots, books.num_free_slots) == (1, 1)
    books.release(7)
    assert (books.num_free_blocks, books.num_free_slots) == (5, 2)


def test_what_does_not_fit_changes_nothing() -> None:
    books = BlockManager(num_blocks=5, num_slots=1, block_tokens=4)
    assert not books.admit(1, 21)
    assert not books.admit(1, 16, spare_blocks=2)
    assert books.num_free_blocks == 5
    assert books.admit(1, 16, spare_blocks=1)
    assert not books.admit(2, 1)
    assert not books.grow(1, 21)
    assert len(books.table(1)) == 4
    assert books.grow(1, 17)
    assert len(books.table(1)) == 5


def test_growing_within_a_block_takes_none() -> None:
    books = BlockManager(num_blocks=2, num_slots=1, block_tokens=4)
    books.admit(1, 1)
    for num_tokens in (2, 3, 4):
        assert books.grow(1, num_tokens)
    assert books.num_used_blocks == 1


def test_an_owner_cannot_be_admitted_twice() -> None:
    books = BlockManager(num_blocks=4, num_slots=2, block_tokens=4)
    books.admit(1, 1)
    with pytest.raises(BooksError):
        books.admit(1, 1)


def test_a_leak_is_seen() -> None:
    books = BlockManager(num_blocks=4, num_slots=2, block_tokens=4)
    books.admit(1, 5)
    books.check_books()
    list(books.table(1))
    books.table(1).pop()  # type: ignore[attr-defined]
    with pytest.raises(BooksError):
        books.check_books()


@pytest.mark.parametrize(("num_blocks", "num_slots", "block_tokens"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_no_books_of_nothing(num_blocks: int, num_slots: int, block_tokens: int) -> None:
    with pytest.raises(ValueError, match="cannot keep books"):
        BlockManager(num_blocks=num_blocks, num_slots=num_slots, block_tokens=block_tokens)


class Books(RuleBasedStateMachine):
    """Against a model: the set of owners and how many positions each has."""

    owners = Bundle("owners")

    @initialize(num_blocks=st.integers(1, 12), num_slots=st.integers(1, 4), block_tokens=st.integers(1, 5))
    def start(self, num_blocks: int, num_slots: int, block_tokens: int) -> None:
        self.books = BlockManager(num_blocks=num_blocks, num_slots=num_slots, block_tokens=block_tokens)
        self.lengths: dict[int, int] = {}
        self.next_owner = 0

    @rule(target=owners, num_tokens=st.integers(1, 40), spare=st.integers(0, 3))
    def admit(self, num_tokens: int, spare: int):  # type: ignore[no-untyped-def]
        free, has_slot = self.books.num_free_blocks, self.books.num_free_slots > 0
        owner = self.next_owner
        self.next_owner += 1
        needed = -(-num_tokens // self.books.block_tokens)
        admitted = self.books.admit(owner, num_tokens, spare_blocks=spare)
        assert admitted == (has_slot and needed + spare <= free)
        if not admitted:
            assert self.books.num_free_blocks == free
            return multiple()
        self.lengths[owner] = num_tokens
        return owner

    @rule(owner=owners, more=st.integers(0, 10))
    def grow(self, owner: int, more: int) -> None:
        before, free = list(self.books.table(owner)), self.books.num_free_blocks
        wanted = self.lengths[owner] + more
        missing = max(-(-wanted // self.books.block_tokens) - len(before), 0)
        grown = self.books.grow(owner, wanted)
        assert grown == (missing <= free)
        assert list(self.books.table(owner))[: len(before)] == before
        if grown:
            self.lengths[owner] = wanted

    @rule(owner=consumes(owners))
    def release(self, owner: int) -> None:
        self.books.release(owner)
        del self.lengths[owner]

    @invariant()
    def balanced(self) -> None:
        if not hasattr(self, "books"):
            return
        self.books.check_books()
        assert self.books.num_used_slots == len(self.lengths)
        for owner, length in self.lengths.items():
            assert len(self.books.table(owner)) == -(-length // self.books.block_tokens)
        slots = [self.books.slot(owner) for owner in self.lengths]
        assert len(set(slots)) == len(slots)


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
