"""Small files that are either the old or the new ones, never half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any, *, durable: bool = True) -> None:
    """Replace `path` by the JSON of `content`; a reader sees the old or the new content. Raises OSError.

    `durable` False leaves out the wait for the disk: for what is worthless after a power cut anyway.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
