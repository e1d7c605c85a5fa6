"""Who owns which KV block and which state slot. Pure: integers only, no tensor, no clock.

A block holds the keys and values of `block_tokens` consecutive positions of one sequence, in every attention layer. A slot
holds the recurrent and the convolution state of one sequence, in every DeltaNet layer. The numbers are indices into what
`cache.HybridCache` allocated once at the start; here they only change hands. Contents are left as they are: a new owner
begins at position 0, where the model takes the state as zero.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence


class BooksError(AssertionError):
    """The books do not balance: a block or slot was leaked or owned twice. A bug of ours, never the user's."""


class BlockManager:
    """Books of `num_blocks` blocks and `num_slots` slots. An owner is named by an int of the caller's."""

    def __init__(self, *, num_blocks: int, num_slots: int, block_tokens: int) -> None:
        if num_blocks < 1 or num_slots < 1 or block_tokens < 1:
            raise ValueError(f"cannot keep books of {num_blocks} blocks of {block_tokens} tokens and {num_slots} slots")
        self.num_blocks = num_blocks
        self.num_slots = num_slots
        self.block_tokens = block_tokens
        # Stacks: what was given back last is handed out next, while its memory is still warm.
        self._free_blocks = list(range(num_blocks - 1, -1, -1))
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._tables: dict[int, array[int]] = {}
        self._slots: dict[int, int] = {}

    @property
    def num_free_blocks(self) -> int:
        return len(self._free_blocks)

    @property
    def num_used_blocks(self) -> int:
        return self.num_blocks - len(self._free_blocks)

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    @property
    def num_used_slots(self) -> int:
        return self.num_slots - len(self._free_slots)

    @property
    def capacity_tokens(self) -> int:
        """The longest sequence that fits when it is alone."""
        return self.num_blocks * self.block_tokens

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold so many positions."""
        return -(-num_tokens // self.block_tokens)

    def table(self, owner: int) -> array[int]:
        """The owner's blocks in order of position, int32. Changes with `grow`; not to be kept across steps, nor looked into by then."""
        return self._tables[owner]

    def slot(self, owner: int) -> int:
        """The owner's slot."""
        return self._slots[owner]

    def admit(self, owner: int, num_tokens: int, *, spare_blocks: int = 0) -> bool:
        """A slot and the blocks of `num_tokens` positions, or nothing and False.

        `spare_blocks` must remain free afterwards: room for those who already run to grow.
        """
        if owner in self._slots:
            raise BooksError(f"owner {owner} is already admitted")
        num_needed = self.blocks_for(num_tokens)
        if not self._free_slots or num_needed + spare_blocks > len(self._free_blocks):
            return False
        self._slots[owner] = self._free_slots.pop()
        self._tables[owner] = array("i", [self._free_blocks.pop() for _ in range(num_needed)])
        return True

    def grow(self, owner: int, num_tokens: int) -> bool:
        """Blocks for `num_tokens` positions in all. False, with nothing changed, when they are not there."""
        table = self._tables[owner]
        if num_tokens <= len(table) * self.block_tokens:
            return True
        num_missing = self.blocks_for(num_tokens) - len(table)
        if num_missing > len(self._free_blocks):
            return False
        for _ in range(num_missing):
            table.append(self._free_blocks.pop())
        return True

    def release(self, owner: int) -> None:
        """Take everything back."""
        self._free_slots.append(self._slots.pop(owner))
        self._free_blocks.extend(reversed(self._tables.pop(owner)))

    def check_books(self) -> None:
        """Every block and slot is free or owned by one. Raises BooksError. Linear in the number of blocks."""
        blocks = [*self._free_blocks, *(block for table in self._tables.values() for block in table)]
        slots = [*self._free_slots, *self._slots.values()]
        if not _is_permutation(blocks, self.num_blocks):
            raise BooksError(f"{len(blocks)} entries for {self.num_blocks} blocks, {len(set(blocks))} of them distinct")
        if not _is_permutation(slots, self.num_slots):
            raise BooksError(f"{len(slots)} entries for {self.num_slots} slots, {len(set(slots))} of them distinct")
        if self._tables.keys() != self._slots.keys():
            raise BooksError("an owner has blocks without a slot, or a slot without blocks")


def _is_permutation(numbers: Sequence[int], count: int) -> bool:
    """Each of 0..count-1 once. By a set, since it runs at every idle moment and there may be 100,000 of them."""
    return len(numbers) == count == len(set(numbers)) and min(numbers) == 0 and max(numbers) == count - 1
