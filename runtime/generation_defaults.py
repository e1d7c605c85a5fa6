"""When an answer ends and how it is sampled where the request does not say: from the files, then from the model cards.

Imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import ConfigInvalid
from .json_file import read_json_object
from .mapping_reader import MappingReader
from .model_config import ModelConfig

GENERATION_FILE = "generation_config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILE = "tokenizer.json"
MAX_TOKENIZER_BYTES = 64 * 1024 * 1024
"""The published tokenizer.json has about 20 MB."""


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling that the checkpoint wants. `stop_ids` end an answer; they come from every file that names any."""

    stop_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    from_file: bool = False
    """Whether generation_config.json gave the sampling (else the card's table by size, or the neutral values)."""


SMALL_CARD = GenerationDefaults(temperature=1.0, top_p=1.0, top_k=20, presence_penalty=2.0)
"""Cards of 0.8B and 2B, which answer without thinking unless told otherwise: non-thinking, text."""
GENERAL_CARD = GenerationDefaults(temperature=1.0, top_p=0.95, top_k=20, presence_penalty=1.5)
"""Cards of 4B to 122B, which think unless told otherwise: thinking, general."""
LARGEST_CARD = GenerationDefaults(temperature=0.6, top_p=0.95, top_k=20)
"""Card of 397B: thinking."""

CARD_BY_SHAPE: Mapping[tuple[int, int], GenerationDefaults] = {
    (1024, 24): SMALL_CARD,
    (2048, 24): SMALL_CARD,
    (2560, 32): GENERAL_CARD,
    (4096, 32): GENERAL_CARD,
    (5120, 64): GENERAL_CARD,
    (2048, 40): GENERAL_CARD,
    (3072, 48): GENERAL_CARD,
    (4096, 60): LARGEST_CARD,
}
"""Published sizes by (hidden_size, layers): no two share both."""


def card_defaults(config: ModelConfig) -> GenerationDefaults:
    """What the model card of this size advises; neutral values for a size that has no card."""
    if config.vocab_size < 200_000:  # a small look-alike is not the published model
        return GenerationDefaults()
    return CARD_BY_SHAPE.get((config.hidden_size, config.num_layers), GenerationDefaults())


def defaults_from(
    config: ModelConfig, generation: Mapping[str, Any] | None, tokenizer_eos_id: int | None
) -> GenerationDefaults:
    """Pure part: `generation` is generation_config.json or None. Raises ConfigInvalid."""
    reader = MappingReader(generation or {}, file=GENERATION_FILE)
    tokenizer_ids = () if tokenizer_eos_id is None else (tokenizer_eos_id,)
    stop_ids = tuple(dict.fromkeys((*reader.integers("eos_token_id", ()), *tokenizer_ids, *config.eos_token_ids)))
    for token_id in stop_ids:
        if token_id >= config.vocab_size:
            raise reader.fail("eos_token_id", f"names id {token_id}, beyond vocab_size {config.vocab_size}")
    sampling_keys = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "do_sample")
    if generation is None or all(generation.get(key) is None for key in sampling_keys):
        return replace(card_defaults(config), stop_ids=stop_ids)
    greedy = not reader.boolean("do_sample", True)
    top_p = reader.number("top_p", 1.0)
    if top_p > 1:
        raise reader.fail("top_p", f"must lie in (0, 1], not {top_p}")
    return GenerationDefaults(
        stop_ids=stop_ids,
        temperature=0.0 if greedy else reader.number("temperature", 1.0, above=-1e-9),
        top_p=top_p,
        top_k=reader.integer("top_k", 0, minimum=0),
        min_p=reader.number("min_p", 0.0, above=-1e-9),
        presence_penalty=reader.number("presence_penalty", 0.0, above=-1e9),
        frequency_penalty=reader.number("frequency_penalty", 0.0, above=-1e9),
        repetition_penalty=reader.number("repetition_penalty", 1.0),
        from_file=True,
    )


def read_generation_defaults(directory: Path, config: ModelConfig) -> GenerationDefaults:
    """Read the files beside config.json. Raises ConfigInvalid; files that are not there are no error."""
    path = directory / GENERATION_FILE
    generation = read_json_object(path) if path.exists() else None
    return defaults_from(config, generation, _tokenizer_eos_id(directory))


def _tokenizer_eos_id(directory: Path) -> int | None:
    """Id of the eos token that tokenizer_config.json names, by its own table of added tokens, else by tokenizer.json's."""
    path = directory / TOKENIZER_CONFIG_FILE
    if not path.exists():
        return None
    content = read_json_object(path)
    token = content.get("eos_token")
    if isinstance(token, Mapping):
        token = token.get("content")
    if token is None:
        return None
    if not isinstance(token, str):
        raise ConfigInvalid(f"eos_token must be a string, not {token!r}", file=TOKENIZER_CONFIG_FILE)
    decoder = content.get("added_tokens_decoder")
    if isinstance(decoder, Mapping):
        for token_id, entry in decoder.items():
            if isinstance(entry, Mapping) and entry.get("content") == token and str(token_id).isdecimal():
                return int(token_id)
    tokenizer_path = directory / TOKENIZER_FILE
    if not tokenizer_path.exists():
        return None
    added = read_json_object(tokenizer_path, MAX_TOKENIZER_BYTES).get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, Mapping) and entry.get("content") == token and isinstance(entry.get("id"), int):
            return int(entry["id"])
    return None
