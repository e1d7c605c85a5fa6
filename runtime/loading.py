"""A directory in the published layout -> an engine, and what is told about it. The one place that builds the parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .block_manager import BlockManager
from .cache import HybridCache
from .chat_template import ChatTemplate
from .config import EngineOptions, load_generation_defaults, load_model_config
from .digest import determinism_class, serving_digest, source_digest
from .engine import MAX_SCORED_TOKENS, MAX_WAITING, Engine
from .intake import Intake
from .model import HybridModel
from .model_runner import ModelRunner
from .plan import plan_memory, size_label
from .prompt import build_prompt
from .scheduler import Scheduler, SchedulerLimits
from .tokenizer import Tokenizer
from .wire import Ready


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that is ready, and the frame that says so."""

    engine: Engine
    ready: Ready


def load_engine(
    directory: Path | str,
    options: EngineOptions,
    *,
    served_name: str | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> LoadedEngine:
    """Check, plan, load, allocate: in this order, so that what cannot be served fails before it takes memory.

    Raises ModelLoadError. `options.threads` holds for the whole process afterwards.
    """
    began_at = clock()
    directory = Path(directory)
    config = load_model_config(directory)
    plan = plan_memory(config, options)
    defaults = load_generation_defaults(directory, config)
    tokenizer = Tokenizer.load(directory)
    template = ChatTemplate.load(directory, tokenizer)
    model = HybridModel.load(directory, config, options)
    cache = HybridCache.allocate(config, plan)
    blocks = BlockManager(num_blocks=plan.num_blocks, num_slots=plan.num_slots, block_tokens=plan.block_tokens)
    limits = SchedulerLimits(
        max_running=options.parallel,
        max_batched_tokens=plan.max_batched_tokens,
        max_waiting=MAX_WAITING,
        max_scored_tokens=MAX_SCORED_TOKENS,
    )
    intake = Intake(
        tokenizer=tokenizer,
        build=lambda prompt: build_prompt(prompt, tokenizer, template),
        defaults=defaults,
        max_model_len=min(plan.context, blocks.capacity_tokens),
        head_rows=config.vocab_size,
    )
    runner = ModelRunner(model, cache, blocks, clock)
    engine = Engine(intake, Scheduler(limits, blocks), runner, clock)
    ready = Ready(
        model=served_name or directory.resolve().name,
        size=size_label(config),
        format="bf16" if options.format == "auto" else options.format,
        backend=options.resolved_backend,
        max_model_len=intake.max_model_len,
        vocab_size=tokenizer.vocab_size,
        max_running=limits.max_running,
        capabilities=["completions", "logprobs", *(["chat", "tools"] if template is not None else [])],
        source_digest=source_digest(directory),
        serving_digest=serving_digest(directory, options),
        determinism_class=determinism_class(),
        num_parameters=model.num_parameters,
        planned_bytes=plan.by_pool(),
        allocated_bytes={"weights": model.weight_nbytes, **cache.nbytes},
        load_s=clock() - began_at,
        skipped_tensors=dict(model.skipped),
    )
    return LoadedEngine(engine, ready)
