"""What `shoal model show` says about a checkpoint, or about a published size that is not here. No torch, no numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint, TensorPlace
from .config import EngineOptions, GenerationDefaults, ModelConfig
from .container import Container
from .errors import OptionInvalid, UnsupportedShape
from .options import FORMATS
from .plan import plan_memory, size_label
from .sizes import SIZES, num_parameters, published_size


def config_facts(config: ModelConfig, stored_format: str = "") -> dict[str, Any]:
    """Sizes and plans that follow from the config; `stored_format` is that of a converted directory."""
    facts: dict[str, Any] = {
        "size": size_label(config),
        "model_type": config.model_type,
        "num_parameters": num_parameters(config),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_delta_layers": len(config.linear_layers),
        "num_attention_layers": len(config.attention_layers),
        "attention_heads": {
            "query": config.num_attention_heads,
            "key_value": config.num_key_value_heads,
            "dim": config.head_dim,
        },
        "delta_heads": {
            "key": config.linear_num_key_heads,
            "value": config.linear_num_value_heads,
            "key_dim": config.linear_key_head_dim,
            "value_dim": config.linear_value_head_dim,
        },
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "planned_bytes": planned_bytes(config, stored_format),
    }
    if config.moe is not None:
        facts["experts"] = asdict(config.moe)
    return facts


def planned_bytes(config: ModelConfig, stored_format: str) -> dict[str, dict[str, int]]:
    """By pool, for every weight format that can be served from what is stored."""
    plans = {}
    for weight_format in (stored_format,) if stored_format else FORMATS[1:]:
        try:
            plans[weight_format] = plan_memory(config, EngineOptions(format=weight_format), stored_format=stored_format)
        except (OptionInvalid, UnsupportedShape):
            continue
    return {name: plan.by_pool() for name, plan in plans.items()}


def checkpoint_facts(
    directory: Path,
    config: ModelConfig,
    checkpoint: Checkpoint,
    tensors: Mapping[str, TensorPlace],
    defaults: GenerationDefaults,
) -> dict[str, Any]:
    """Everything about a directory whose headers were matched; `tensors` are all of its files', skipped ones too."""
    dtypes: dict[str, int] = {}
    for place in tensors.values():
        dtypes[place.entry.dtype] = dtypes.get(place.entry.dtype, 0) + place.entry.num_bytes
    return {
        "directory": str(directory),
        **config_facts(config),
        "files": [path.name for path in checkpoint.files],
        "num_tensors": len(tensors),
        "num_trunk_tensors": len(checkpoint.places),
        "num_trunk_bytes": checkpoint.num_bytes,
        "num_tensor_bytes": sum(dtypes.values()),
        "bytes_by_dtype": dtypes,
        "skipped_tensors": dict(checkpoint.skipped),
        "dropped_config_keys": list(config.dropped_keys),
        "generation": asdict(defaults),
    }


def container_facts(
    directory: Path, config: ModelConfig, container: Container, defaults: GenerationDefaults
) -> dict[str, Any]:
    """Everything about a converted directory whose header was read. `other_layouts`: matrices that are not in the file's format."""
    bytes_by_layout: dict[str, int] = {}
    for tensor in container.tensors.values():
        bytes_by_layout[tensor.layout] = bytes_by_layout.get(tensor.layout, 0) + tensor.num_bytes
    usual = {container.format, "f32", "rows8", "rows16"}
    return {
        "directory": str(directory),
        "format": container.format,
        "format_version": container.metadata["format_version"],
        "source_digest": container.source_digest,
        **config_facts(config, stored_format=container.format),
        "files": [container.path.name],
        "num_tensors": len(container.tensors),
        "num_tensor_bytes": container.num_bytes,
        "bytes_by_layout": bytes_by_layout,
        "other_layouts": {
            name: tensor.layout
            for name, tensor in container.tensors.items()
            if tensor.layout not in usual and not name.endswith(".gates") and name != "head.scan"
        },
        "generation": asdict(defaults),
    }


def published_facts(name: str) -> dict[str, Any] | None:
    """Facts of a published size by its catalogue or repository name; None for another name."""
    wanted = name.lower().removeprefix("qwen/").removeprefix("qwen3.5-")
    for size in SIZES:
        if size.lower() == wanted:
            published = published_size(size)
            return {
                "directory": None,
                "repository": published.repository,
                **config_facts(published.config),
                "num_tensors": published.num_tensors,
                "num_tensor_bytes": published.num_bytes,
            }
    return None


def render_facts(facts: Mapping[str, Any], indent: str = "") -> str:
    """Lines for a person: names without underscores, thousands separated, nested facts below their name."""
    lines: list[str] = []
    for name, value in facts.items():
        label = name.replace("_", " ")
        if isinstance(value, Mapping):
            lines += [f"{indent}{label}:", render_facts(value, indent + "  ")] if value else [f"{indent}{label}: none"]
        elif isinstance(value, list | tuple):
            lines.append(f"{indent}{label}: {', '.join(str(item) for item in value) or 'none'}")
        elif isinstance(value, int) and not isinstance(value, bool):
            lines.append(f"{indent}{label}: {value:,}")
        elif value is not None:
            lines.append(f"{indent}{label}: {value}")
    return "\n".join(lines)
