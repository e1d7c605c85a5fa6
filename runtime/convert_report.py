"""What a conversion did: errors by tensor and by group of tensors, for people and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor. Errors are relative: the root of (sum of squared differences / sum of squares)."""

    name: str
    layout: str
    rows: int
    cols: int
    num_bytes: int
    error_sum: float
    """Sum of squared differences of the weights; `energy_sum`: of their squares."""
    energy_sum: float
    output_error: float | None = None
    """Of the products with the probe inputs, activations rounded as the engine rounds them; None where nothing was probed."""
    fell_back: bool = False
    """The output error was above the threshold, so the tensor is bf16."""

    @property
    def error(self) -> float:
        """Relative error of the weights."""
        return math.sqrt(self.error_sum / self.energy_sum) if self.energy_sum else 0.0

    @property
    def group(self) -> str:
        """The name without its layer."""
        return self.name.split(".", 2)[2] if self.name.startswith("layers.") else self.name


@dataclass(frozen=True, slots=True)
class QualityReport:
    """How far the converted model's predictions are from those of bf16, over a text."""

    num_tokens: int
    kl_divergence: float
    """Mean over the positions, nats."""
    perplexity: float
    perplexity_bf16: float
    same_top: float
    """Share of positions with the same likeliest token."""


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """A whole conversion."""

    directory: Path
    format: str
    source_digest: str
    num_bytes: int
    """Of the converted file."""
    source_bytes: int
    """Of the trunk as published."""
    seconds: float
    num_resumed: int
    """Tensors that an earlier, interrupted attempt had finished."""
    tensors: tuple[TensorReport, ...]
    quality: QualityReport | None = None

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Tensors that stayed bf16 because of their output error."""
        return tuple(tensor.name for tensor in self.tensors if tensor.fell_back)

    def groups(self) -> dict[str, dict[str, float | None]]:
        """Group -> relative error of all its weights together, and the worst output error."""
        found: dict[str, list[TensorReport]] = {}
        for tensor in self.tensors:
            if tensor.layout != "f32":
                found.setdefault(tensor.group, []).append(tensor)
        return {group: _group_errors(tensors) for group, tensors in found.items()}

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "directory": str(self.directory),
            "format": self.format,
            "source_digest": self.source_digest,
            "num_bytes": self.num_bytes,
            "source_bytes": self.source_bytes,
            "seconds": round(self.seconds, 3),
            "num_resumed": self.num_resumed,
            "fallbacks": list(self.fallbacks),
            "groups": self.groups(),
            "tensors": {
                tensor.name: {
                    "layout": tensor.layout,
                    "rows": tensor.rows,
                    "cols": tensor.cols,
                    "num_bytes": tensor.num_bytes,
                    "error": tensor.error,
                    "output_error": tensor.output_error,
                }
                for tensor in self.tensors
            },
            "quality": None if self.quality is None else asdict(self.quality),
        }


def _group_errors(tensors: list[TensorReport]) -> dict[str, float | None]:
    energy = sum(tensor.energy_sum for tensor in tensors)
    outputs = [tensor.output_error for tensor in tensors if tensor.output_error is not None]
    return {
        "error": math.sqrt(sum(tensor.error_sum for tensor in tensors) / energy) if energy else 0.0,
        "output_error": max(outputs, default=None),
    }


def render_report(report: ConversionReport) -> str:
    """A few lines for a person."""
    lines = [
        f"{report.directory}: {report.format}, {report.num_bytes:,} bytes (of {report.source_bytes:,}), {report.seconds:.1f} s"
    ]
    lines += [
        f"  {group:<12} weights {100 * (errors['error'] or 0):6.2f} %"
        + (f"   products {100 * errors['output_error']:6.2f} %" if errors["output_error"] is not None else "")
        for group, errors in report.groups().items()
    ]
    lines += [f"  {name} stays bf16: its products would be too far off" for name in report.fallbacks]
    if report.quality is not None:
        found = report.quality
        lines.append(
            f"  over {found.num_tokens} tokens: KL divergence {found.kl_divergence:.5f} nats, perplexity {found.perplexity:.3f}"
            f" (bf16 {found.perplexity_bf16:.3f}), same likeliest token {100 * found.same_top:.1f} %"
        )
    return "\n".join(lines)
