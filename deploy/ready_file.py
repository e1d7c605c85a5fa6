"""The ready file: what runs where, for scripts and supervisors, rewritten whenever a process id changes."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_json_atomically(path: Path, content: dict[str, Any]) -> None:
    """A reader sees the old content or the new, never a part: written beside, flushed, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def ready_content(
    controller: dict[str, Any], agents: list[dict[str, Any]], previous: dict[str, Any] | None
) -> dict[str, Any]:
    """The file's content from the children's status files.

    An engine that is being started again keeps its last process id until the new one is known, so that no reader meets a hole.
    """
    before = {agent["id"]: agent for agent in (previous or {}).get("agents", [])}
    rows = []
    for status in agents:
        last = before.get(status["id"], {})
        rows.append(
            {
                "id": status["id"],
                "pid": status["pid"],
                "engine_pid": status.get("engine_pid") or last.get("engine_pid"),
                "metrics": status.get("metrics") or last.get("metrics"),
                "model": status.get("model") or last.get("model"),
            }
        )
    return {
        "http": controller["http"],
        "grpc": controller["grpc"],
        "controllers": [{"pid": controller["pid"]}],
        "agents": rows,
    }
