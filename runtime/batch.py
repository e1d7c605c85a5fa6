"""What one forward pass needs to know: which tokens of which sequences, and where those sequences keep their past. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of a step: `num_tokens` consecutive tokens, the first at position `start`.

    `block_table[i]` is the KV block of positions [i * block_tokens, (i + 1) * block_tokens); it covers all positions up to
    start + num_tokens - 1 and may be longer. `slot` is where the recurrent and convolution states live; at `start` 0 they begin
    at zero whatever the slot held before.
    """

    num_tokens: int
    start: int
    block_table: tuple[int, ...]
    slot: int

    @property
    def end(self) -> int:
        """Tokens that the sequence has after the step."""
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows one after another, flat. `logits_at` indexes `token_ids`: where logits are wanted, in this order."""

    token_ids: list[int]
    rows: list[Row]
    logits_at: list[int]

    def check(self, *, vocab_size: int, num_blocks: int, block_tokens: int, num_slots: int) -> None:
        """Raise ValueError for what would read or write past an end: a bug of the caller, never of a request."""
        if sum(row.num_tokens for row in self.rows) != len(self.token_ids):
            raise ValueError("the rows' tokens do not add up to token_ids")
        if self.token_ids and not 0 <= min(self.token_ids) <= max(self.token_ids) < vocab_size:
            raise ValueError(f"token ids outside 0..{vocab_size - 1}")
        if self.logits_at and not 0 <= min(self.logits_at) <= max(self.logits_at) < len(self.token_ids):
            raise ValueError("logits_at points outside token_ids")
        if len({row.slot for row in self.rows}) != len(self.rows):
            raise ValueError("two rows share a slot")
        for row in self.rows:
            if row.num_tokens < 1 or row.start < 0 or not 0 <= row.slot < num_slots:
                raise ValueError(f"bad row: {row.num_tokens} tokens from {row.start} in slot {row.slot}")
            if len(row.block_table) * block_tokens < row.end:
                raise ValueError(f"{len(row.block_table)} blocks do not hold {row.end} tokens")
            if row.block_table and not 0 <= min(row.block_table) <= max(row.block_table) < num_blocks:
                raise ValueError(f"block table points outside 0..{num_blocks - 1}")
