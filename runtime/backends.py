"""Which back end serves a model, and in which formats: the one place that decides. Imports neither torch nor numpy.

back end    what computes                         weights                          can serve
cpu         the native kernels                    bf16, int8, int4; converted      the shapes of `broken_constraint`
reference   torch operations, the oracle          the published files, f32, bf16   every shape

`auto` is what the other options imply, else cpu where it can serve the model, else the reference where torch is installed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from .errors import CheckpointCorrupt, FormatMismatch, OptionInvalid, TensorDtype, Unsupported, UnsupportedShape
from .model_config import ModelConfig
from .options import NATIVE_BLOCK_TOKENS, REFERENCE_BLOCK_TOKENS, EngineOptions
from .safetensors_file import read_header

CONVERTED_FILE = "model.safetensors"
CONVERTED_FORMATS = ("bf16", "int8", "int4")

LANES = 16
"""Of the native kernels' vectors: the head dims that they loop over are multiples of it."""
TAPS = 4
"""Of the convolution in the native kernels."""


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """What runs."""

    name: str
    """"cpu" or "reference"."""
    format: str
    """Of the weights as served."""
    kv_format: str
    """Of cached keys and values."""
    block_tokens: int
    note: str = ""
    """Why `auto` did not take the native back end; empty where it did, or where nobody left the choice."""

    @property
    def is_native(self) -> bool:
        """Whether the native kernels compute."""
        return self.name == "cpu"


NATIVE_KV_FORMATS = {"bf16": "f32", "int8": "bf16", "int4": "bf16"}
"""In which keys and values are kept by default. With weights as published nothing is rounded, so that logits are those of the model in
f32; beside rounded weights, rounding keys and values to bf16 as well is not seen, and halves what a token of the past takes."""


def choose_backend(
    config: ModelConfig, options: EngineOptions, *, stored_format: str = "", has_torch: bool | None = None
) -> BackendChoice:
    """Decide. `stored_format`: that of a converted directory, "" for a published one (`stored_format_of`).

    Raises UnsupportedShape, FormatMismatch, Unsupported.
    """
    wanted = options.implied_backend
    if stored_format and wanted == "reference":
        raise FormatMismatch(
            f"the weights are converted to {stored_format}; the reference back end reads published ones only"
        )
    broken = broken_constraint(config)
    if wanted == "cpu" or stored_format or (wanted is None and not broken):
        if broken:
            raise UnsupportedShape(broken, file="config.json")
        if stored_format and options.format not in ("auto", stored_format):
            raise FormatMismatch(f"the weights are converted to {stored_format}, {options.format} was asked for")
        weight_format = stored_format or ("bf16" if options.format == "auto" else options.format)
        return BackendChoice(
            name="cpu",
            format=weight_format,
            kv_format=NATIVE_KV_FORMATS[weight_format] if options.kv_format == "auto" else options.kv_format,
            block_tokens=NATIVE_BLOCK_TOKENS,
        )
    if not (torch_is_installed() if has_torch is None else has_torch):
        if wanted is None:
            raise UnsupportedShape(f"{broken}; the reference back end would serve it, with the extra 'torch' installed")
        raise Unsupported("the reference back end needs torch: pip install 'shoal[torch]'")
    return BackendChoice(
        name="reference",
        format="bf16",
        kv_format=options.dtype if options.kv_format == "auto" else options.kv_format,
        block_tokens=options.block_tokens or REFERENCE_BLOCK_TOKENS,
        note=broken if wanted is None else "",
    )


def broken_constraint(config: ModelConfig) -> str:
    """The first constraint of the native kernels that these sizes break, "" where they hold."""
    if config.moe is not None:
        return "the native back end has no sparse feed-forward yet"
    if config.linear_layers:
        if config.linear_conv_kernel_dim != TAPS:
            return f"linear_conv_kernel_dim must be {TAPS} in the native back end, not {config.linear_conv_kernel_dim}"
        for name in ("linear_key_head_dim", "linear_value_head_dim"):
            if getattr(config, name) % LANES:
                return f"{name} must be a multiple of {LANES} in the native back end, not {getattr(config, name)}"
    if config.attention_layers and config.head_dim % LANES:
        return f"head_dim must be a multiple of {LANES} in the native back end, not {config.head_dim}"
    return ""


def stored_format_of(directory: Path) -> str:
    """The format of a converted directory, "" for every other. Raises CheckpointCorrupt for a format that nobody writes."""
    path = directory / CONVERTED_FILE
    if not path.is_file():
        return ""
    try:
        metadata = read_header(path).metadata
    except (CheckpointCorrupt, TensorDtype):
        return ""  # whoever reads the weights says what is wrong with them
    if "format_version" not in metadata:
        return ""
    stored = metadata.get("format", "")
    if stored not in CONVERTED_FORMATS:
        raise CheckpointCorrupt(f"is converted to the unknown format {stored[:40]!r}", file=path.name)
    return stored


def native_isa(asked: str) -> str:
    """The instruction set that the native kernels take here for `--isa`. Loads the compiled module. Raises OptionInvalid."""
    from shoal.kernels.cpu import UnsupportedIsa, choose_isa  # who only plans needs no kernels

    try:
        return choose_isa(asked)
    except UnsupportedIsa as error:
        raise OptionInvalid("isa", str(error)) from error


def torch_is_installed() -> bool:
    """Without importing it."""
    return importlib.util.find_spec("torch") is not None
