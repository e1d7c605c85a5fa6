"""Who a node is: an id that outlives restarts, in one small file of its own."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from pathlib import Path

from .errors import BadOption, IdentityUnreadable

ID_PATTERN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
"""1 to 64 letters, digits, dots, dashes, underscores: safe in a URL, a metric label and a file name."""

MAX_IDENTITY_BYTES = 4096


def check_node_id(node_id: str) -> str:
    """The id itself. Raises BadOption when it is not one."""
    if not ID_PATTERN.fullmatch(node_id):
        raise BadOption(
            f"--id {node_id!r}: an id has 1 to 64 letters, digits, '.', '_' and '-', "
            "and begins and ends with a letter or digit"
        )
    return node_id


def load_identity(folder: Path, name: str = "agent") -> str:
    """The id in `<folder>/<name>.json`; on the first call one is made up and written there.

    Two first calls at once agree on one id. Raises IdentityUnreadable for a file that is not ours.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        host = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname().split(".")[0]).strip("-")[:40] or "node"
        draft = folder / f".{name}.{os.getpid()}.{secrets.token_hex(4)}"
        draft.write_text(json.dumps({"id": f"{host}-{secrets.token_hex(3)}"}) + "\n", encoding="utf-8")
        try:
            os.link(draft, path)  # unlike a rename it does not replace the id that another process has just written
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not path.exists():
                draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    try:
        content = json.loads(path.read_bytes()[:MAX_IDENTITY_BYTES])
        return check_node_id(content["id"])
    except (OSError, ValueError, KeyError, TypeError, BadOption) as error:
        raise IdentityUnreadable(f"{path} does not hold a node's id; remove it to get a new one") from error
