"""What a busy server asks for: which statuses are worth another attempt, and how long it wants to be left alone."""

from __future__ import annotations

import contextlib
import email.utils
import time

RETRYABLE_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))

MAX_RETRY_AFTER_S = 600.0
"""A longer Retry-After is not waited for."""


class Busy(Exception):
    """This attempt failed, another may not. `after_s` is what the server asked for."""

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


def retry_after_s(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait, whether it is a number or a date. None where it says nothing."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), MAX_RETRY_AFTER_S)
    with contextlib.suppress(ValueError, TypeError):
        wait_s = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        return min(max(0.0, wait_s), MAX_RETRY_AFTER_S)
    return None
