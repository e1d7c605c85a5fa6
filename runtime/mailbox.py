"""What one thread hands to another. Its length is bounded by what its writers may have under way (`open_requests`)."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """Items in order, any number of writers, one reader who takes all there are."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._is_woken = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def wake(self) -> None:
        """Let the reader return, now and from now on, though there may be nothing."""
        with self._changed:
            self._is_woken = True
            self._changed.notify()

    def take_all(self, timeout_s: float | None) -> list[Item]:
        """Everything there is; waits for something up to `timeout_s` (None: for ever). Empty after `wake` or the time."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_woken or bool(self._items), timeout_s)
            items, self._items = self._items, []
            return items
