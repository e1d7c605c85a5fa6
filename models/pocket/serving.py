"""The exported model through the engine that serves it, so that a weight format can be measured as users meet it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shoal.runtime.backends import stored_format_of
from shoal.runtime.config import EngineOptions, load_model_config
from shoal.runtime.loading import load_backend
from shoal.runtime.model_dirs import shoal_home
from shoal.runtime.plan import plan_memory
from shoal.runtime.score import cut_points

CONTEXT = 2048


class ServedModel:
    """A folder, loaded by the native back end in one of its formats."""

    def __init__(self, folder: Path, weight_format: str) -> None:
        self.config = load_model_config(folder)
        options = EngineOptions(backend="cpu", format=weight_format, context=CONTEXT, parallel=1)
        stored = stored_format_of(folder)
        plan = plan_memory(self.config, options, stored_format=stored)
        self.backend = load_backend(folder, self.config, options, plan, stored, shoal_home(), None)

    def logits(self, ids: list[int]) -> Tensor:
        """[T, V] f32 of one sequence from its beginning."""
        points = cut_points(len(ids), [], self.backend.max_scored_piece)
        pieces = [bytes(piece) for name, piece in self.backend.score(self.config, ids, points) if name == "logits"]
        values = np.frombuffer(b"".join(pieces), dtype=np.float32)
        return torch.from_numpy(values.reshape(len(ids), self.config.vocab_size).copy())
