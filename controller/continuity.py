"""Whether what a node sends continues what came before. Pure.

Every output of a choice says at which index its ids begin. What begins where the choice stands continues it; what lies wholly
before is a repetition and dropped; anything else means that something was lost on the way, and the answer cannot be trusted.
"""

from __future__ import annotations

from shoal.proto.v1 import generation_pb2


class Broken(Exception):
    """Outputs are missing or overlap: the stream cannot go on."""


class Continuity:
    """The choices of one attempt at one request."""

    def __init__(self, num_choices: int) -> None:
        self.next_index = [0] * num_choices
        self.finishes: dict[int, generation_pb2.Finish] = {}
        self.num_prompt_tokens = 0

    @property
    def is_complete(self) -> bool:
        """Every choice has finished, or one said that the whole request failed."""
        return len(self.finishes) == len(self.next_index) or any(
            finish.reason == generation_pb2.FINISH_REASON_ERROR for finish in self.finishes.values()
        )

    @property
    def num_generated(self) -> int:
        """Ids over all choices, as the finish says where there is one."""
        return sum(
            self.finishes[choice].usage.completion_tokens if choice in self.finishes else count
            for choice, count in enumerate(self.next_index)
        )

    def accepts(self, output: generation_pb2.Output) -> bool:
        """Count the output in; False when it repeats what is known. Raises Broken."""
        choice, length = output.choice, len(output.token_ids)
        if choice >= len(self.next_index):
            raise Broken(f"choice {choice} of {len(self.next_index)}")
        if choice in self.finishes:
            return False
        expected = self.next_index[choice]
        if output.first_index > expected:
            raise Broken(f"choice {choice}: outputs {expected} to {output.first_index - 1} are missing")
        if output.first_index < expected:
            if output.first_index + length > expected:
                raise Broken(f"choice {choice}: outputs from {output.first_index} overlap what reaches to {expected}")
            return False
        self.next_index[choice] = expected + length
        if output.HasField("prompt"):
            self.num_prompt_tokens = len(output.prompt.token_ids)
        if output.HasField("finish"):
            self.finishes[choice] = output.finish
        return True
