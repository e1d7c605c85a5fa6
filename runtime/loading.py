"""A directory in the published layout, or a converted one -> an engine. The one place that builds the parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .backends import stored_format_of
from .block_manager import BlockManager
from .config import EngineOptions, load_generation_defaults, load_model_config
from .model_config import ModelConfig
from .model_dirs import shoal_home
from .plan import MemoryPlan, plan_memory
from .tokenizer import Tokenizer
from .tokenizer_files import read_tokenizer_files
from .wire import Conversation, Prompt

if TYPE_CHECKING:
    from .chat_template import ChatTemplate
    from .engine import Engine, Runner
    from .prompt import BuiltPrompt

Announce = Callable[[str], None]


class Reads(IntEnum):
    """What prompts are to be read at once. What the others need is built when the first of them comes, which takes tenths of a
    second, and what is wrong with it is told then."""

    IDS = 0
    TEXT = 1
    """The tokenizer is there too."""
    CONVERSATIONS = 2
    """And the chat template."""


class LoadedBackend(Protocol):
    """What computes, loaded (`native_backend.NativeBackend`, `reference_backend.ReferenceBackend`)."""

    @property
    def plan(self) -> MemoryPlan:
        """What was allocated."""

    @property
    def num_parameters(self) -> int: ...

    @property
    def isa(self) -> str:
        """Instruction set, as the back end names it."""

    @property
    def threads(self) -> int:
        """Of a step."""

    @property
    def allocated_bytes(self) -> dict[str, int]:
        """By the names of the plan's pools, activations and host excepted."""

    @property
    def skipped(self) -> Mapping[str, int]:
        """Tensors of the files that are knowingly not loaded, by kind."""

    @property
    def source_digest(self) -> str | None:
        """Where it is written in the files; None: it follows from them."""

    @property
    def weight_digests(self) -> Mapping[str, str] | None:
        """What tells the served weights from others; None: the files' own bytes."""

    @property
    def determinism_class(self) -> str: ...

    @property
    def cut_tokens(self) -> int:
        """SchedulerLimits.cut_tokens."""

    @property
    def max_scored_tokens(self) -> int:
        """SchedulerLimits.max_scored_tokens."""

    @property
    def max_scored_piece(self) -> int:
        """The same where one sequence is alone (`score`)."""

    def make_present(self) -> None:
        """Let no step wait for memory that it is the first to use, nor run beside a thread that makes it present."""

    def runner(self, blocks: BlockManager, clock: Callable[[], float]) -> Runner: ...

    def score(self, config: ModelConfig, ids: Sequence[int], points: Sequence[int]) -> Iterator[tuple[str, memoryview]]:
        """Run `ids` alone, cut at `points`, and yield score.score_specs' tensors in their order, logits in pieces."""


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that is ready to step, and what it was built from."""

    engine: Engine
    directory: Path
    config: ModelConfig
    options: EngineOptions
    backend: LoadedBackend
    home: Path
    template: Callable[[], ChatTemplate | None]
    load_s: float

    @property
    def plan(self) -> MemoryPlan:
        """What was allocated."""
        return self.backend.plan

    @property
    def has_template(self) -> bool:
        """Whether conversations can be read. Raises TemplateInvalid where it had not been looked at."""
        return self.template() is not None


def load_engine(
    directory: Path | str,
    options: EngineOptions,
    *,
    home: Path | None = None,
    announce: Announce = lambda line: None,
    reads: Reads = Reads.CONVERSATIONS,
    clock: Callable[[], float] = time.monotonic,
) -> LoadedEngine:
    """Check, plan, load, allocate: in this order, so that what cannot be served fails before it takes memory.

    `home`: where converted weights are kept, by default $SHOAL_HOME; `announce` gets a line about whatever is worth one. What serves
    leaves `reads` as it is: then a broken tokenizer or template is known now. Raises ModelLoadError, OptionInvalid.
    """
    began_at = clock()
    directory = Path(directory)
    home = shoal_home() if home is None else home
    config = load_model_config(directory)
    stored_format = stored_format_of(directory)
    plan = plan_memory(config, options, stored_format=stored_format)
    if plan.note:
        announce(f"the reference back end serves: {plan.note}")
    defaults = load_generation_defaults(directory, config)
    files = read_tokenizer_files(directory)
    # Side by side: the native back end maps without the interpreter's lock, as long as the rest takes. Not imported above, for the
    # same reason: numpy and the library of the tokenizer are most of what a start has to wait for.
    if plan.backend == "cpu":
        from . import native_backend, native_weights  # noqa: F401 - threads that import at a time take turns, and the map would wait
    with ThreadPoolExecutor(1, thread_name_prefix="weights") as beside:
        loading = beside.submit(
            load_backend, directory, config, options, plan, stored_format, home, files.vocab_size, announce
        )
        from .engine import MAX_PREFILL_BESIDE_DECODE, MAX_WAITING, Engine
        from .intake import Intake
        from .prompt import build_prompt
        from .scheduler import Scheduler, SchedulerLimits

        tokenizer = Tokenizer.of(files, at_once=reads >= Reads.TEXT)

        @cache
        def template() -> ChatTemplate | None:
            from .chat_template import ChatTemplate

            return ChatTemplate.load(directory, tokenizer)

        if reads >= Reads.CONVERSATIONS:
            template()
        backend = loading.result()
    plan = backend.plan
    blocks = BlockManager(num_blocks=plan.num_blocks, num_slots=plan.num_slots, block_tokens=plan.block_tokens)
    limits = SchedulerLimits(
        max_running=options.parallel,
        max_batched_tokens=plan.max_batched_tokens,
        max_prefill_beside_decode=MAX_PREFILL_BESIDE_DECODE,
        max_waiting=MAX_WAITING,
        max_scored_tokens=backend.max_scored_tokens,
        cut_tokens=backend.cut_tokens,
    )
    max_model_len = min(plan.context, blocks.capacity_tokens)

    def build(prompt: Prompt) -> BuiltPrompt:
        compiled = template() if isinstance(prompt, Conversation) else None
        return build_prompt(prompt, tokenizer, compiled, context=max_model_len)

    intake = Intake(
        tokenizer=tokenizer,
        build=build,
        defaults=defaults,
        max_model_len=max_model_len,
        head_rows=config.vocab_size,
    )
    engine = Engine(intake, Scheduler(limits, blocks), backend.runner(blocks, clock), clock)
    return LoadedEngine(engine, directory, config, options, backend, home, template, clock() - began_at)


def load_backend(
    directory: Path,
    config: ModelConfig,
    options: EngineOptions,
    plan: MemoryPlan,
    stored_format: str,
    home: Path,
    num_drawable: int | None,
    announce: Announce = lambda line: None,
) -> LoadedBackend:
    """The weights and pools of the back end that the plan is for. `num_drawable`: ids that the tokenizer knows; None: all. Raises ModelLoadError, OptionInvalid."""
    if plan.backend == "reference":
        from .reference_backend import ReferenceBackend  # torch takes seconds to import

        return ReferenceBackend.load(directory, config, options, plan)
    from .native_backend import NativeBackend
    from .native_weights import served_weights

    weights = served_weights(directory, stored_format, plan.format, home, announce)
    # Some tensors may be held in another format than the rest: now it is known what the file takes.
    plan = plan_memory(config, options, stored_format=plan.format, stored_bytes=weights.container.num_bytes)
    try:
        return NativeBackend.load(config, options, plan, weights, num_drawable)
    finally:
        weights.release()
