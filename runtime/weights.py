"""Values from files into memory: one tensor allocated at a time, filled a piece at a time, every value checked to be finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import IO

import torch
from torch import Tensor

from .cache import TORCH_DTYPES
from .checkpoint import Checkpoint, TensorPlace
from .errors import AllocationFailed, CheckpointCorrupt, TensorNotFinite
from .model_config import ModelConfig
from .plan import is_matrix
from .safetensors_file import ITEM_BYTES
from .tensors import TensorSpec, expected_tensors

PIECE_BYTES = 16 * 1024 * 1024
"""Bytes read at once: what loading needs beside the weights themselves."""
FILE_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

Progress = Callable[[int, int], None]
"""Called with bytes read and bytes in all."""


def load_weights(
    checkpoint: Checkpoint, config: ModelConfig, dtype: str, progress: Progress | None = None
) -> dict[str, Tensor]:
    """Every trunk tensor by relative name: matrices in `dtype`, the rest in f32. Raises CheckpointCorrupt, TensorNotFinite,
    AllocationFailed.
    """
    weights: dict[str, Tensor] = {}
    total, done = checkpoint.num_bytes, 0
    staging = torch.empty(PIECE_BYTES, dtype=torch.uint8)
    for name, spec in expected_tensors(config).items():
        target = allocate_tensor(name, spec, TORCH_DTYPES[dtype] if is_matrix(name, spec) else torch.float32)
        parts = checkpoint.places[name]
        for part, share in zip(parts, target.view(len(parts), -1), strict=True):
            fill_tensor(share, part, name, staging)
            done += part.entry.num_bytes
        weights[name] = target
        if progress is not None:
            progress(done, total)
    return weights


def allocate_tensor(name: str, spec: TensorSpec, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory for one tensor. Raises AllocationFailed."""
    try:
        return torch.empty(spec.shape, dtype=dtype)
    except RuntimeError as error:  # what torch raises where memory is refused
        raise AllocationFailed(f"no memory for {spec.num_elements * dtype.itemsize:,} bytes", tensor=name) from error


def fill_tensor(target: Tensor, place: TensorPlace, name: str, staging: Tensor) -> None:
    """Read `place` into `target` through `staging` [bytes] uint8. Raises CheckpointCorrupt, TensorNotFinite."""
    entry, flat = place.entry, target.view(-1)
    file_dtype, item_bytes = FILE_DTYPES[entry.dtype], ITEM_BYTES[entry.dtype]
    step = len(staging) // item_bytes
    try:
        with place.path.open("rb", buffering=0) as file:
            file.seek(entry.offset)
            for begin in range(0, len(flat), step):
                end = min(len(flat), begin + step)
                piece = staging[: (end - begin) * item_bytes]
                _read_fully(file, piece, place, name)
                values = piece.view(file_dtype)
                low, high = torch.aminmax(values)  # a NaN anywhere makes both NaN, without a second copy
                if not bool(torch.isfinite(low) & torch.isfinite(high)):
                    raise TensorNotFinite("holds NaN or infinity", file=place.path.name, tensor=name)
                flat[begin:end].copy_(values)
    except OSError as error:
        raise CheckpointCorrupt(f"cannot be read: {error.strerror}", file=place.path.name, tensor=name) from error


def _read_fully(file: IO[bytes], piece: Tensor, place: TensorPlace, name: str) -> None:
    view, done = piece.numpy().data, 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise CheckpointCorrupt("ended while it was read", file=place.path.name, tensor=name)
        done += count


def weight_nbytes(weights: Mapping[str, Tensor]) -> int:
    """Allocated bytes."""
    return sum(tensor.nbytes for tensor in weights.values())
