"""The hybrid decoder: embedding, layers, norm, head. Everything about one step is in `forward`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.kernels import ops

from .batch import Batch
from .cache import HybridCache
from .checkpoint import open_checkpoint
from .cores import SMALL_MODEL_BYTES
from .layers.decoder import DecoderLayer
from .model_config import ModelConfig
from .options import EngineOptions
from .plan import PIECE_TILE, SINGLE_TILE, weight_bytes
from .sizes import num_parameters
from .step_layout import RopeBasis, lay_out
from .tensors import EMBEDDING, FINAL_NORM, HEAD
from .weights import Progress, load_weights, weight_nbytes


@dataclass(frozen=True, slots=True)
class HybridModel:
    """A loaded text model; immutable, so one can serve any number of caches."""

    config: ModelConfig
    embedding: Tensor
    layers: tuple[DecoderLayer, ...]
    norm: Tensor
    head: Tensor
    """[vocab_size, H]; the embedding itself where the config ties them."""
    basis: RopeBasis
    num_parameters: int
    weight_nbytes: int
    """Bytes that the weights take in memory."""
    skipped: Mapping[str, int]
    """Tensors of the files that are knowingly not loaded, by kind ("mtp", "visual", "tied_head")."""

    @classmethod
    def load(
        cls,
        directory: Path | str,
        config: ModelConfig,
        options: EngineOptions,
        *,
        progress: Progress | None = None,
    ) -> HybridModel:
        """Load a directory in the published layout. Headers are checked before anything is allocated.

        Raises ModelLoadError (its children say what is wrong and where). `options.threads` is set for the whole process.
        """
        threads = options.threads
        if threads is None and weight_bytes(config, options.dtype) < SMALL_MODEL_BYTES:
            threads = 1
        if threads is not None:
            torch.set_num_threads(threads)
        checkpoint = open_checkpoint(Path(directory), config)
        weights = load_weights(checkpoint, config, options.dtype, progress)
        return cls.of(weights, config, skipped=checkpoint.skipped)

    @classmethod
    def of(
        cls, weights: Mapping[str, Tensor], config: ModelConfig, skipped: Mapping[str, int] | None = None
    ) -> HybridModel:
        """From the trunk's tensors by relative name (tensors.expected_tensors)."""
        return cls(
            config=config,
            embedding=weights[EMBEDDING],
            layers=tuple(DecoderLayer.of(weights, i, config) for i in range(config.num_layers)),
            norm=weights[FINAL_NORM],
            head=weights[EMBEDDING] if config.tie_word_embeddings else weights[HEAD],
            basis=RopeBasis.of(config.rope),
            num_parameters=num_parameters(config),
            weight_nbytes=weight_nbytes(weights),
            skipped=skipped or {},
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of matrices and activations."""
        return self.embedding.dtype

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: HybridCache) -> Tensor:
        """One step: advance every row of the batch and return logits [len(logits_at), vocab_size] f32, every row of the head.

        Raises ValueError for a batch that would leave the cache's bounds.
        """
        batch.check(
            vocab_size=self.config.vocab_size,
            num_blocks=cache.num_blocks,
            block_tokens=cache.block_tokens,
            num_slots=cache.num_slots,
        )
        layout = lay_out(batch, self.basis, cache.block_tokens)
        h = F.embedding(layout.token_ids, self.embedding)
        for layer in self.layers:
            h = layer.forward(h, layout, cache)
        wanted = h.index_select(0, layout.rows[torch.tensor(batch.logits_at, dtype=torch.int64)])
        wanted = ops.rms_norm(wanted, self.norm, self.config.rms_norm_eps)
        # The last token of a row is what an id is drawn from: it shares its tiles with other such tokens only, so that its logits do
        # not depend on whether somebody's prompt is scored in the same step.
        ends = set(itertools.accumulate(row.num_tokens for row in batch.rows))
        last = [i for i, at in enumerate(batch.logits_at) if at + 1 in ends]
        inner = [i for i, at in enumerate(batch.logits_at) if at + 1 not in ends]
        logits = torch.empty(len(wanted), len(self.head), dtype=torch.float32)
        for places, height in ((last, SINGLE_TILE), (inner, PIECE_TILE)):
            for begin in range(0, len(places), height):
                at = torch.tensor(places[begin : begin + height])
                rows = ops.pad_rows(wanted.index_select(0, at), height)
                logits.index_copy_(0, at, F.linear(rows, self.head)[: len(at)].float())
        return logits
