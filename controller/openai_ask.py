"""What a decoded request asks for: one generation request a prompt, and the form that the answer takes."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.proto.v1 import generation_pb2


@dataclass(frozen=True, slots=True)
class Form:
    """How the answer is written; nothing of it concerns an engine but what `requests` repeat."""

    is_stream: bool
    include_usage: bool
    with_token_ids: bool
    with_logprobs: bool
    num_choices: int
    """Choices a prompt (`n`)."""
    num_prompts: int = 1
    echo: bool = False

    @property
    def opens_with_prompt(self) -> bool:
        """Whether the first chunk of each choice shows something of its prompt."""
        return self.echo or (self.with_token_ids and self.num_prompts > 1)

    @property
    def num_choices_total(self) -> int:
        return self.num_choices * self.num_prompts


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to one of the two routes. `model` is what the client wrote, so it may be `auto`."""

    model: str
    requests: list[generation_pb2.GenerationRequest]
    form: Form
