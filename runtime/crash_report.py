"""What of an exception may be written to a log: its type and where it was raised, never its message.

A message may quote a prompt or an answer (a library's does, if ours does not). The frames hold file, line and function;
source lines and local values stay out.
"""

from __future__ import annotations

import sys
import threading
import traceback
from types import TracebackType

MAX_FRAMES = 40
"""Innermost frames kept of each exception."""

MAX_CAUSES = 8
"""Exceptions of a chain that are named, from the last one back."""


def describe(error: BaseException) -> str:
    """Several lines: `Type`, its frames outermost first, then the same of what it was raised from."""
    lines: list[str] = []
    current: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if current is None:
            break
        lines.append(f"{'from ' if lines else ''}{type(current).__module__}.{type(current).__qualname__}")
        for frame in traceback.extract_tb(current.__traceback__)[-MAX_FRAMES:]:
            lines.append(f"  {frame.filename}:{frame.lineno} {frame.name}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n".join(lines)


def write(heading: str, error: BaseException) -> None:
    """One report on stderr."""
    sys.stderr.write(f"{heading}: {describe(error)}\n")
    sys.stderr.flush()


def install() -> None:
    """Reports instead of tracebacks for whatever nobody catches, in this process."""

    def on_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        write("uncaught", error)

    def on_thread(details: threading.ExceptHookArgs) -> None:
        if details.exc_value is not None:
            write(f"uncaught in thread {details.thread.name if details.thread else '?'}", details.exc_value)

    def on_unraisable(details: sys.UnraisableHookArgs) -> None:
        if details.exc_value is not None:
            write("ignored", details.exc_value)

    sys.excepthook = on_uncaught
    threading.excepthook = on_thread
    sys.unraisablehook = on_unraisable
