"""Usage, timings and energy of an answer, gathered from the ends of its choices."""

from __future__ import annotations

from typing import Any

from shoal.proto.v1 import generation_pb2

from .errors import EngineFailed

FINISH_REASONS: dict[int, str] = {
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
    generation_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}
"""The words of OpenAI's API. The other reasons are errors and never reach an answer."""


def finish_word(finish: generation_pb2.Finish) -> str:
    """Raises EngineFailed for an end that is none."""
    word = FINISH_REASONS.get(finish.reason)
    if word is None:
        raise EngineFailed(finish.error.message or "the answer ended without a reason")
    return word


class Tally:
    """Knows when the answer is complete."""

    def __init__(self, num_choices_total: int) -> None:
        self._num_open = num_choices_total
        self._finishes: dict[tuple[int, int], generation_pb2.Finish] = {}

    def add(self, prompt_index: int, choice: int, finish: generation_pb2.Finish) -> None:
        """The end of one choice."""
        if (prompt_index, choice) not in self._finishes:
            self._num_open -= 1
        self._finishes[prompt_index, choice] = finish

    @property
    def is_complete(self) -> bool:
        return self._num_open == 0

    def usage(self) -> dict[str, Any]:
        """Each prompt counts once however many choices it has; cached tokens are those of its first choice."""
        firsts = [finish.usage for (_, choice), finish in self._finishes.items() if choice == 0]
        prompt_tokens = sum(usage.prompt_tokens for usage in firsts)
        completion_tokens = sum(finish.usage.completion_tokens for finish in self._finishes.values())
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in firsts)},
        }

    def shoal(self, node_id: str, attempts: int) -> dict[str, Any]:
        """Of several choices: the earliest first token, and the longest of everything else."""
        timings = [finish.timings for finish in self._finishes.values()]
        found: dict[str, Any] = {
            "node": node_id,
            "attempts": attempts,
            "timings": {
                "queue_s": min(t.queue_s for t in timings),
                "prefill_s": max(t.prefill_s for t in timings),
                "ttft_s": min(t.ttft_s for t in timings),
                "decode_s": max(t.decode_s for t in timings),
                "total_s": max(t.total_s for t in timings),
            },
        }
        # A sum over choices of which some have no reading would be too small: then it is absent.
        if all(finish.HasField("energy") for finish in self._finishes.values()):
            sources = sorted({finish.energy.provenance for finish in self._finishes.values()})
            joules = sum(finish.energy.joules for finish in self._finishes.values())
            found["energy"] = {"joules": joules, "provenance": "+".join(sources)}
        return found
