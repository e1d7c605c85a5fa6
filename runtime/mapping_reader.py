"""Typed reading of a parsed config.json: each value is checked, each key read is remembered, each complaint names its key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .errors import ConfigInvalid

MAX_SIZE = 2**31 - 1
"""No dimension is larger; keeps products of two of them exact and plans free of surprises."""


class MappingReader:
    """One JSON object of a config. `path` is the dotted prefix for messages ("" at the top).

    Every method raises ConfigInvalid with the key's full path. `unread()` lists what nobody asked for.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "", file: str = "config.json") -> None:
        self._values = values
        self._path = path
        self._file = file
        self._read: set[str] = set()

    def fail(self, key: str, message: str) -> ConfigInvalid:
        """The error to raise about `key`."""
        return ConfigInvalid(f"{self._path}{key} {message}", file=self._file)

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as it stands, or `default` where the key is absent or null."""
        self._read.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = MAX_SIZE) -> int:
        """An int in [minimum, maximum]; required where `default` is None. A whole float (16.0) is an int."""
        value = self.raw(key, default)
        if value is None:
            raise self.fail(key, "is missing")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, f"must be an integer, not {value!r}")
        if not minimum <= value <= maximum:
            raise self.fail(key, f"must lie in {minimum}..{maximum}, not {value}")
        return value

    def number(self, key: str, default: float | None = None, *, above: float = 0.0) -> float:
        """A finite float greater than `above`; required where `default` is None."""
        value = self.raw(key, default)
        if value is None:
            raise self.fail(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.fail(key, f"must be a number, not {value!r}")
        if value <= above:
            raise self.fail(key, f"must be greater than {above}, not {value}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, not {value!r}")
        return value

    def string(self, key: str, default: str) -> str:
        """A string."""
        value = self.raw(key, default)
        if not isinstance(value, str):
            raise self.fail(key, f"must be a string, not {value!r}")
        return value

    def integers(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list of non-negative ints; a single int is a list of one."""
        value = self.raw(key, default)
        items = [value] if isinstance(value, int) else value
        if not isinstance(items, list | tuple) or any(
            isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= MAX_SIZE for item in items
        ):
            raise self.fail(key, f"must be an id or a list of them, not {value!r}")
        return tuple(items)

    def object(self, key: str) -> MappingReader | None:
        """A reader of the object at `key`, None where it is absent."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.fail(key, f"must be an object, not {value!r}")
        return MappingReader(value, f"{self._path}{key}.", self._file)

    def unread(self) -> list[str]:
        """Full paths of the keys that nobody read, sorted."""
        return sorted(f"{self._path}{key}" for key in self._values if key not in self._read)
