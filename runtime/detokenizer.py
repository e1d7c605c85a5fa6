"""Bytes of tokens to text, never ending inside a character."""

from __future__ import annotations

import codecs


class Utf8Stream:
    """Incremental UTF-8: incomplete bytes wait for the rest, wrong ones read as U+FFFD as soon as that is certain."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, piece: bytes) -> str:
        """The characters that are complete now."""
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """The end of the text: what is incomplete reads as U+FFFD. Afterwards a new text may begin."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
