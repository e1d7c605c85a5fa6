"""One answer put together from the engine's outputs, as `shoal generate --json` prints it. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from .wire import DeltaKind, ErrorInfo, Finish, FinishReason, Output, TokenLogprob


class AnswerCollector:
    """`add` every output of a request with one choice; then `result`."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        self._token_ids: list[int] = []
        self._prompt_token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish: Finish | None = None

    @property
    def error(self) -> ErrorInfo | None:
        """Why the answer failed, if it did."""
        return None if self._finish is None else self._finish.error

    def add(self, output: Output) -> None:
        """Outputs in the order in which they came."""
        self._token_ids += output.token_ids
        self._logprobs += output.logprobs
        if output.prompt is not None:
            self._prompt_token_ids = output.prompt.token_ids
        if output.finish is not None:
            self._finish = output.finish
        for delta in output.deltas:
            match delta.kind:
                case DeltaKind.TEXT:
                    self._text.append(delta.text)
                case DeltaKind.REASONING:
                    self._reasoning.append(delta.text)
                case DeltaKind.TOOL_CALL_START:
                    self._calls[delta.tool_index] = {"id": delta.call_id, "name": delta.name, "arguments": delta.text}
                case DeltaKind.TOOL_CALL_ARGUMENTS:
                    self._calls[delta.tool_index]["arguments"] += delta.text

    def result(self) -> dict[str, Any]:
        """A JSON value. `logprobs` stands in it only where they were asked for."""
        finish = self._finish
        usage = None if finish is None else finish.usage
        result: dict[str, Any] = {
            "text": "".join(self._text),
            "reasoning": "".join(self._reasoning),
            "tool_calls": [self._calls[index] for index in sorted(self._calls)],
            "token_ids": self._token_ids,
            "prompt_token_ids": self._prompt_token_ids,
            "finish_reason": str(FinishReason.ERROR if finish is None else finish.reason),
            "usage": {
                "prompt_tokens": 0 if usage is None else usage.prompt_tokens,
                "completion_tokens": 0 if usage is None else usage.completion_tokens,
            },
            "timings": {} if finish is None else msgspec.structs.asdict(finish.timings),
        }
        if self._logprobs:
            result["logprobs"] = [
                {
                    "token_id": entry.token_id,
                    "logprob": entry.logprob,
                    "token": _text_of(entry.token),
                    "top": [
                        {"token_id": top.token_id, "logprob": top.logprob, "token": _text_of(top.token)}
                        for top in entry.top
                    ],
                }
                for entry in self._logprobs
            ]
        return result


def _text_of(token: bytes) -> str:
    r"""A token's text; `bytes:\xNN...` where its bytes are not UTF-8, as on the HTTP API."""
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
