"""Questions to a running fleet over its HTTP API, with the standard library only."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit


class AskFailed(Exception):
    """The fleet refused or did not answer; the message is the API's own."""


def call(base_url: str, method: str, path: str, body: str | None = None, *, timeout_s: float = 10.0) -> Any:
    """One JSON request. Raises AskFailed with the API's own message, or with why there was no answer."""
    target = urlsplit(base_url)
    connection = http.client.HTTPConnection(target.hostname or "127.0.0.1", target.port, timeout=timeout_s)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body is not None else {})
        response = connection.getresponse()
        answer = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AskFailed(f"no answer from {base_url}: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        error_object = answer.get("error") if isinstance(answer, dict) else None
        raise AskFailed(str((error_object or {}).get("message", f"status {response.status}")))
    return answer


def ask(base_url: str, text: str, *, timeout_s: float) -> str:
    """The greedy answer to one user message, from whatever model `auto` stands for. Raises AskFailed."""
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": text}], "temperature": 0})
    answer = call(base_url, "POST", "/v1/chat/completions", body, timeout_s=timeout_s)
    return str(answer["choices"][0]["message"]["content"] or "")
