"""The published sizes: their configs are data files of this package, everything else follows from them. No torch, no numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from .model_config import ModelConfig
from .tensors import expected_tensors, published_tensors

SIZES = ("0.8B", "2B", "4B", "9B", "27B", "35B-A3B", "122B-A10B", "397B-A17B")
SMALL_TEMPLATE_SIZES = ("0.8B", "2B")
"""Their chat template thinks only when asked to; the others think unless asked not to."""


@dataclass(frozen=True, slots=True)
class PublishedSize:
    """One size of the family; bytes are exact."""

    size: str
    """As in the published name: "0.8B"."""
    config: ModelConfig
    num_parameters: int
    """Of the text trunk, a tied matrix once."""
    num_bytes: int
    """Tensor bytes of the whole published checkpoint: trunk, vision tower, MTP block."""
    num_tensors: int

    @property
    def name(self) -> str:
        """Catalogue name: "qwen3.5-0.8b"."""
        return f"qwen3.5-{self.size.lower()}"

    @property
    def repository(self) -> str:
        """Where it is published."""
        return f"Qwen/Qwen3.5-{self.size}"


def published_config(size: str) -> Mapping[str, Any]:
    """The config.json of one of SIZES, parsed."""
    text = resources.files(__package__).joinpath("configs", f"{size}.json").read_text("utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def published_size(size: str) -> PublishedSize:
    """Facts of one of SIZES."""
    config = ModelConfig.from_mapping(published_config(size))
    whole = published_tensors(config)
    return PublishedSize(
        size=size,
        config=config,
        num_parameters=num_parameters(config),
        num_bytes=sum(spec.num_bytes for spec in whole.values()),
        num_tensors=len(whole),
    )


def published_sizes() -> tuple[PublishedSize, ...]:
    """All of them, smallest first."""
    return tuple(published_size(size) for size in SIZES)


def num_parameters(config: ModelConfig) -> int:
    """Parameters of the text trunk."""
    return sum(spec.num_elements for spec in expected_tensors(config).values())


def size_label(config: ModelConfig) -> str:
    """The published size in lower case ("0.8b") where config has exactly a published trunk, else the parameter count in words ("1.3m", "752m")."""
    count = num_parameters(config)
    for size in SIZES:
        published = ModelConfig.from_mapping(published_config(size))
        same_shape = (published.hidden_size, published.num_layers) == (config.hidden_size, config.num_layers)
        if same_shape and num_parameters(published) == count:
            return size.lower()
    for unit, divisor in (("b", 1e9), ("m", 1e6), ("k", 1e3)):
        if count >= divisor:
            return f"{count / divisor:.3g}{unit}"
    return str(count)
