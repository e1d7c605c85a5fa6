"""The numeric window into a back end: logits at every token of given ids, and what the sequence leaves behind.

File layout: docs/model-score.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .backends import stored_format_of
from .config import load_model_config
from .errors import ContextTooLong, IdsInvalid, OptionInvalid
from .loading import load_backend
from .model_config import ModelConfig
from .model_dirs import shoal_home
from .options import EngineOptions
from .plan import plan_memory
from .safetensors_file import write_safetensors

MAX_IDS_FILE_BYTES = 64 * 1024 * 1024


def read_ids(path: Path, vocab_size: int) -> list[int]:
    """A JSON list of token ids, one at least. Raises IdsInvalid."""
    try:
        if path.stat().st_size > MAX_IDS_FILE_BYTES:
            raise IdsInvalid(f"{path.name} is larger than {MAX_IDS_FILE_BYTES:,} bytes")
        ids = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise IdsInvalid(f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise IdsInvalid(f"{path.name} is not JSON: {error}") from error
    if not isinstance(ids, list) or not ids:
        raise IdsInvalid(f"{path.name} is not a JSON list of one id at least")
    for place, token_id in enumerate(ids):
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            raise IdsInvalid(f"{path.name}[{place}] is {str(token_id)[:40]!r}, not an id in 0..{vocab_size - 1}")
    return ids


def cut_points(num_tokens: int, splits: Sequence[int], max_piece: int) -> list[int]:
    """Where pieces begin and end: 0, the splits, num_tokens, and more where a piece would exceed `max_piece`.

    Order and repetition of `splits` mean nothing. Raises OptionInvalid for one outside 1..num_tokens.
    """
    for split in splits:
        if not 1 <= split <= num_tokens:
            raise OptionInvalid("split", f"{split} lies outside 1..{num_tokens}")
    ends = sorted({*splits, num_tokens})
    points = [0]
    for end in ends:
        while points[-1] < end:
            points.append(min(end, points[-1] + max_piece))
    return points


def score_directory(
    directory: Path, ids_path: Path, out: Path, options: EngineOptions, splits: Sequence[int] = ()
) -> int:
    """Load, run, write `out` (whole or not at all). Returns the number of tokens.

    Raises ModelLoadError, IdsInvalid, ContextTooLong, OptionInvalid, OSError.
    """
    config = load_model_config(directory)
    ids = read_ids(ids_path, config.vocab_size)
    longest = options.context or config.max_position_embeddings
    if len(ids) > longest:
        raise ContextTooLong(f"{len(ids)} ids exceed the context of {longest}")
    alone = replace(options, context=len(ids), parallel=1)
    stored_format = stored_format_of(directory)
    plan = plan_memory(config, alone, stored_format=stored_format)
    cut_points(len(ids), splits, 1)  # refuses a wrong split before anything is loaded
    backend = load_backend(directory, config, alone, plan, stored_format, shoal_home(), None)
    points = cut_points(len(ids), splits, backend.max_scored_piece)
    write_safetensors(out, score_specs(config, len(ids)), backend.score(config, ids, points))
    return len(ids)


def score_specs(config: ModelConfig, num_tokens: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> dtype and shape of what a back end's `score` yields, in its order."""
    specs: dict[str, tuple[str, tuple[int, ...]]] = {"logits": ("F32", (num_tokens, config.vocab_size))}
    past = (num_tokens, config.num_key_value_heads, config.head_dim)
    column = (config.conv_dim, config.linear_conv_kernel_dim - 1)
    state = (config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim)
    for i in range(config.num_layers):
        if i in config.attention_layers:
            specs |= {f"k.{i}": ("F32", past), f"v.{i}": ("F32", past)}
        else:
            specs |= {f"conv.{i}": ("F32", column), f"state.{i}": ("F32", state)}
    return specs
