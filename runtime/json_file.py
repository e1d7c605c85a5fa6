"""Bounded reading of the JSON files of a model directory, every failure typed. Imports neither torch nor numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigInvalid

MAX_CONFIG_BYTES = 16 * 1024 * 1024
"""Largest config, index or generation file that is read (the published index of 2,924 tensors has 0.3 MB)."""


def read_json_object(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> Mapping[str, Any]:
    """The JSON object in `path`. Raises ConfigInvalid when it is missing, too large, not UTF-8, not JSON or not an object."""
    try:
        if not path.is_file():
            raise ConfigInvalid("there is no such file", file=path.name)
        if path.stat().st_size > max_bytes:
            raise ConfigInvalid(f"larger than {max_bytes:,} bytes", file=path.name)
        content = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ConfigInvalid(f"cannot be read: {error.strerror}", file=path.name) from error
    except UnicodeDecodeError as error:
        raise ConfigInvalid("is not UTF-8", file=path.name) from error
    except (ValueError, RecursionError) as error:  # ValueError: also integers of thousands of digits
        raise ConfigInvalid(f"is not JSON: {error}", file=path.name) from error
    if not isinstance(content, dict):
        raise ConfigInvalid("is not a JSON object", file=path.name)
    return content
