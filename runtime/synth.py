"""Random checkpoints in the published layout: everything that loading, serving and measuring need, but for the knowledge."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from .checkpoint import INDEX_FILE, TEXT_ONLY_PREFIX
from .config import CONFIG_FILE
from .errors import OptionInvalid
from .generation_defaults import GENERATION_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from .model_config import FULL_ATTENTION, LINEAR_ATTENTION, MAX_LAYERS, ModelConfig
from .safetensors_file import write_safetensors
from .sizes import SIZES, SMALL_TEMPLATE_SIZES, published_config
from .synth_tokenizer import END_OF_TEXT, END_OF_TURN, SynthTokenizer, make_tokenizer
from .synth_values import ValueSource
from .tensors import HEAD, PUBLISHED_PREFIX, TensorSpec, expected_tensors, published_tensors

MAX_SHARD_BYTES = 2 * 1024**3
"""A new file begins where this would be exceeded; a checkpoint within it is one file without an index."""
TEMPLATE_FILE = "chat_template.jinja"
SMALL_TEMPLATE, GENERAL_TEMPLATE = "chat_template.qwen3.5-small.jinja", "chat_template.qwen3.5.jinja"
TOKEN_ID_KEYS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}

Progress = Callable[[int, int], None]
"""Called with bytes written and bytes in all."""


@dataclass(frozen=True, slots=True)
class SynthSummary:
    """What was written."""

    directory: Path
    num_tensors: int
    num_parameters: int
    num_bytes: int
    num_files: int


def size_named(name: str) -> str:
    """One of SIZES from "0.8B", "0.8b" or "qwen3.5-0.8b". Raises OptionInvalid."""
    wanted = name.lower().removeprefix("qwen/").removeprefix("qwen3.5-")
    for size in SIZES:
        if size.lower() == wanted:
            return size
    raise OptionInvalid("size", f"{name!r} is not published; there are {', '.join(SIZES)}")


def synthesise_size(name: str, out: Path, **choices: Any) -> SynthSummary:
    """`synthesise` for a published size, with its own chat template. Raises OptionInvalid too."""
    size = size_named(name)
    return synthesise(published_config(size), out, small_template=size in SMALL_TEMPLATE_SIZES, **choices)


def synthesise(
    values: Mapping[str, Any],
    out: Path,
    *,
    seed: int = 0,
    layers: int | None = None,
    small_template: bool = False,
    format: str = "bf16",
    progress: Progress | None = None,
) -> SynthSummary:
    """Write a random checkpoint for a parsed config.json into the new directory `out`; it appears when it is whole.

    `layers` changes the number of trunk layers. The same config and seed give the same bytes. With the format "int8" or "int4" what
    appears is the converted model of those values, without its published form on the way. Raises ConfigInvalid, Unsupported,
    OptionInvalid, OSError.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionInvalid("out", f"{out} is there already and is not an empty directory")
    content = with_layers(without_stop_ids(values), layers)
    config = ModelConfig.from_mapping(content)
    tokenizer = make_tokenizer(config.vocab_size, config.max_position_embeddings)
    content = with_token_ids(content, tokenizer)
    if format != "bf16":
        return synthesise_converted(content, config, out, format, seed, tokenizer, small_template, progress)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        num_files = write_weights(partial, config, content, seed, progress)
        write_side_files(partial, content, tokenizer, small_template)
        if out.is_dir():
            out.rmdir()
        os.replace(partial, out)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(partial)
        raise
    specs = published_tensors(config)
    return SynthSummary(
        directory=out,
        num_tensors=len(specs),
        num_parameters=sum(spec.num_elements for spec in specs.values()),
        num_bytes=sum(spec.num_bytes for spec in specs.values()),
        num_files=num_files,
    )


def synthesise_converted(
    content: Mapping[str, Any],
    config: ModelConfig,
    out: Path,
    format: str,
    seed: int,
    tokenizer: SynthTokenizer,
    small_template: bool,
    progress: Progress | None,
) -> SynthSummary:
    """The trunk only: a converted model has neither vision tower nor MTP block."""
    from .convert import convert_tensors, synthetic_digest  # the published form needs no native kernels
    from .tensor_rows import SynthSource

    trunk = expected_tensors(config)
    full = {name: name if name == HEAD else f"{PUBLISHED_PREFIX}{name}" for name in trunk}
    if "text_config" not in content:
        full = {name: f"{TEXT_ONLY_PREFIX}{name}" if name != HEAD else name for name in trunk}
    report = convert_tensors(
        SynthSource(ValueSource(seed), {name: (full[name], spec) for name, spec in trunk.items()}),
        config,
        out,
        format,
        synthetic_digest(content, seed),
        lambda directory: write_side_files(directory, content, tokenizer, small_template),
        progress=progress,
    )
    return SynthSummary(
        directory=out,
        num_tensors=len(report.tensors),
        num_parameters=sum(spec.num_elements for spec in trunk.values()),
        num_bytes=report.num_bytes,
        num_files=1,
    )


def with_layers(values: Mapping[str, Any], layers: int | None) -> dict[str, Any]:
    """A copy of the config with `layers` trunk layers: the first ones, continued by the pattern. Raises OptionInvalid."""
    content = copy.deepcopy(dict(values))
    if layers is None:
        return content
    if not 1 <= layers <= MAX_LAYERS:
        raise OptionInvalid("layers", f"must lie in 1..{MAX_LAYERS}, not {layers}")
    given = list(ModelConfig.from_mapping(content).layer_types)
    interval = given.index(FULL_ATTENTION) + 1 if FULL_ATTENTION in given else MAX_LAYERS + 1
    more = [LINEAR_ATTENTION if (i + 1) % interval else FULL_ATTENTION for i in range(len(given), layers)]
    text = content.get("text_config", content)
    text["num_hidden_layers"], text["layer_types"] = layers, (given + more)[:layers]
    return content


def without_stop_ids(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the config with 0 for stop ids: a small `vocab_size` does not hold the published ones."""
    content = copy.deepcopy(dict(values))
    for part in (content, content.get("text_config")):
        if isinstance(part, dict) and part.get("eos_token_id") is not None:
            part["eos_token_id"] = 0
    return content


def with_token_ids(values: Mapping[str, Any], tokenizer: SynthTokenizer) -> dict[str, Any]:
    """A copy of the config whose token ids are those of the tokenizer."""
    content = copy.deepcopy(dict(values))
    text = content.get("text_config", content)
    text["eos_token_id"] = tokenizer.added[END_OF_TEXT]
    for key in ("eos_token_id", "pad_token_id", "bos_token_id"):
        for part in (content, text):
            if part.get(key) is not None:
                part[key] = tokenizer.added[END_OF_TEXT]
    for key, token in TOKEN_ID_KEYS.items():
        if key in content:
            content[key] = tokenizer.added.get(token)
    kind = "Qwen3_5Moe" if "moe" in content["model_type"] else "Qwen3_5"
    content.setdefault(
        "architectures", [f"{kind}ForConditionalGeneration" if "text_config" in content else f"{kind}ForCausalLM"]
    )
    return content


def checkpoint_tensors(config: ModelConfig, content: Mapping[str, Any]) -> dict[str, TensorSpec]:
    """Full names as published: a flat text config gets the prefix of a text-only checkpoint."""
    specs = published_tensors(config)
    if "text_config" in content:
        return specs
    return {
        f"{TEXT_ONLY_PREFIX}{name.removeprefix(PUBLISHED_PREFIX)}" if name.startswith(PUBLISHED_PREFIX) else name: spec
        for name, spec in specs.items()
    }


def shards_of(specs: Mapping[str, TensorSpec], max_bytes: int = MAX_SHARD_BYTES) -> list[dict[str, TensorSpec]]:
    """Tensors in order, a new shard where the last would grow beyond `max_bytes`."""
    shards: list[dict[str, TensorSpec]] = []
    used = 0
    for name, spec in specs.items():
        if not shards or used + spec.num_bytes > max_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = spec
        used += spec.num_bytes
    return shards


def write_weights(
    directory: Path, config: ModelConfig, content: Mapping[str, Any], seed: int, progress: Progress | None
) -> int:
    """The safetensors files, and the index where there are several. Returns how many."""
    specs = checkpoint_tensors(config, content)
    shards, source = shards_of(specs), ValueSource(seed)
    total, done = sum(spec.num_bytes for spec in specs.values()), 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shard, file)

        def pieces(shard: Mapping[str, TensorSpec] = shard) -> Iterator[tuple[str, memoryview]]:
            nonlocal done
            for name, spec in shard.items():
                for piece in source.pieces(name, spec):
                    yield name, piece
                    done += piece.nbytes
                    if progress is not None:
                        progress(done, total)

        headers = {name: (spec.dtype, spec.shape) for name, spec in shard.items()}
        write_safetensors(directory / file, headers, pieces(), {"format": "pt"})
    if len(shards) > 1:
        write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return len(shards)


def write_side_files(
    directory: Path, content: Mapping[str, Any], tokenizer: SynthTokenizer, small_template: bool
) -> None:
    """Config, tokenizer, template, and the stop ids (sampling is left to the model card)."""
    template = resources.files(__package__).joinpath(
        "published", SMALL_TEMPLATE if small_template else GENERAL_TEMPLATE
    )
    stop_ids = [tokenizer.added[END_OF_TURN], tokenizer.added[END_OF_TEXT]]
    write_json(directory / CONFIG_FILE, content)
    write_json(directory / GENERATION_FILE, {"eos_token_id": stop_ids, "pad_token_id": tokenizer.added[END_OF_TEXT]})
    write_json(directory / TOKENIZER_FILE, tokenizer.tokenizer, indent=None)
    write_json(directory / TOKENIZER_CONFIG_FILE, tokenizer.tokenizer_config)
    (directory / TEMPLATE_FILE).write_bytes(template.read_bytes())


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = 2) -> None:
    """UTF-8, a newline at the end."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")
