"""Finds stop strings in a text that comes piece by piece; text that may be the beginning of one is held back."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """The match that ends first wins; of those that end together, the longest. So the pieces' borders do not matter."""

    def __init__(self, strings: Sequence[str]) -> None:
        """Empty strings stop nothing and are left out."""
        self.strings = tuple(dict.fromkeys(string for string in strings if string))
        """Those that are looked for."""
        self._held = ""
        self.hit: str | None = None
        """The string that was found; no text comes out after it."""

    def push(self, text: str) -> str:
        """The text that is known to stand before any match."""
        if self.hit is not None:
            return ""
        if not self.strings:
            return text
        seen = self._held + text
        best: tuple[int, int, str] | None = None
        for string in self.strings:
            start = seen.find(string)
            if start >= 0:
                found = (start + len(string), start, string)
                best = found if best is None else min(best, found)
        if best is not None:
            self.hit, self._held = best[2], ""
            return seen[: best[1]]
        keep = max((_overlap(seen, string) for string in self.strings), default=0)
        cut = len(seen) - keep
        self._held = seen[cut:]
        return seen[:cut]

    def flush(self) -> str:
        """What was held back: the text ends here, or what follows is of another kind."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `string`."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
