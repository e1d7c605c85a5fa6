"""The reference back end, loaded: torch holds the weights and the cache. The one way to it, so that all else starts without torch."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from .block_manager import BlockManager
from .cache import HybridCache
from .model import HybridModel
from .model_config import ModelConfig
from .model_runner import ModelRunner
from .options import EngineOptions
from .plan import MAX_SCORED_TOKENS, QUERY_TILE, MemoryPlan
from .reference_score import score_pieces


@dataclass(frozen=True, slots=True)
class ReferenceBackend:
    """A model and the cache of its sequences."""

    plan: MemoryPlan
    model: HybridModel
    cache: HybridCache

    @classmethod
    def load(cls, directory: Path, config: ModelConfig, options: EngineOptions, plan: MemoryPlan) -> ReferenceBackend:
        """Raises ModelLoadError. `options.threads` holds for the whole process afterwards."""
        model = HybridModel.load(directory, config, options)
        return cls(plan, model, HybridCache.allocate(config, plan))

    @property
    def num_parameters(self) -> int:
        """Of the trunk."""
        return self.model.num_parameters

    @property
    def isa(self) -> str:
        """As torch names it."""
        return str(torch.backends.cpu.get_cpu_capability())

    @property
    def threads(self) -> int:
        """Of the whole process."""
        return torch.get_num_threads()

    @property
    def allocated_bytes(self) -> dict[str, int]:
        """By the names of the plan's pools."""
        return {"weights": self.model.weight_nbytes, **self.cache.nbytes}

    @property
    def skipped(self) -> Mapping[str, int]:
        """Tensors that are knowingly not loaded, by kind."""
        return self.model.skipped

    @property
    def source_digest(self) -> str | None:
        """That of the files as they are."""
        return None

    @property
    def weight_digests(self) -> Mapping[str, str] | None:
        """The files' own."""
        return None

    @property
    def cut_tokens(self) -> int:
        """Prompts are cut at whole tiles."""
        return QUERY_TILE

    @property
    def max_scored_tokens(self) -> int:
        """Prompt tokens of a step whose logits may be wanted."""
        return MAX_SCORED_TOKENS

    @property
    def max_scored_piece(self) -> int:
        """A whole step."""
        return self.plan.max_batched_tokens

    @property
    def determinism_class(self) -> str:
        """Build, torch version, machine and instruction set on which tokens depend."""
        machine = f"{platform.machine()}-{self.isa}"
        return f"shoal-{metadata.version('shoal')}/reference/torch-{torch.__version__}/{machine}"

    def make_present(self) -> None:
        """LoadedBackend.make_present: torch has written to what it holds."""

    def runner(self, blocks: BlockManager, clock: Callable[[], float]) -> ModelRunner:
        """What computes the steps over these books."""
        return ModelRunner(self.model, self.cache, blocks, clock)

    def score(self, config: ModelConfig, ids: Sequence[int], points: Sequence[int]) -> Iterator[tuple[str, memoryview]]:
        """LoadedBackend.score."""
        return score_pieces(self.model, self.cache, ids, points)
