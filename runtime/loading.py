"""A directory in the published layout -> an engine. The one place that builds the parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .block_manager import BlockManager
from .cache import HybridCache
from .chat_template import ChatTemplate
from .config import EngineOptions, load_generation_defaults, load_model_config
from .engine import MAX_PREFILL_BESIDE_DECODE, MAX_WAITING, Engine
from .intake import Intake
from .model import HybridModel
from .model_runner import ModelRunner
from .plan import MAX_SCORED_TOKENS, QUERY_TILE, MemoryPlan, plan_memory
from .prompt import build_prompt
from .scheduler import Scheduler, SchedulerLimits
from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that is ready to step, and what it was built from."""

    engine: Engine
    directory: Path
    options: EngineOptions
    plan: MemoryPlan
    model: HybridModel
    cache: HybridCache
    has_template: bool
    load_s: float


def load_engine(
    directory: Path | str, options: EngineOptions, *, clock: Callable[[], float] = time.monotonic
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
        max_prefill_beside_decode=MAX_PREFILL_BESIDE_DECODE,
        max_waiting=MAX_WAITING,
        max_scored_tokens=MAX_SCORED_TOKENS,
        cut_tokens=QUERY_TILE,
    )
    max_model_len = min(plan.context, blocks.capacity_tokens)
    intake = Intake(
        tokenizer=tokenizer,
        build=lambda prompt: build_prompt(prompt, tokenizer, template, context=max_model_len),
        defaults=defaults,
        max_model_len=max_model_len,
        head_rows=config.vocab_size,
    )
    engine = Engine(intake, Scheduler(limits, blocks), ModelRunner(model, cache, blocks, clock), clock)
    return LoadedEngine(engine, directory, options, plan, model, cache, template is not None, clock() - began_at)
