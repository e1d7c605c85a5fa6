"""Bytes of tokens to text, never ending inside a character."""

from __future__ import annotations

import codecs


class Utf8Stream:
    """Incremental UTF-8: incomplete bytes wait for the rest, wrong ones read as U+FFFD as soon as that is certain."""

    def __init__(self) -> None:
        self._incomplete = b""

    def push(self, piece: bytes) -> str:
        """The characters that are complete now."""
        if self._incomplete:
            piece = self._incomplete + piece
        text, num_bytes = codecs.utf_8_decode(piece, "replace", False)
        self._incomplete = piece[num_bytes:]
        return text

    def flush(self) -> str:
        """The end of the text: what is incomplete reads as U+FFFD. Afterwards a new text may begin."""
        piece, self._incomplete = self._incomplete, b""
        return piece.decode("utf-8", "replace")
