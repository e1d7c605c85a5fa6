"""A tokenizer for random checkpoints: the 256 bytes, fillers that only ids can name, and the published added tokens.

With the published number of rows the added tokens have their published ids; with fewer rows they stand at the end, the least needed
left out first where not all fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from .errors import ConfigInvalid

NUM_BYTES = 256
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How the published tokenizer cuts text into words; a field of its tokenizer_config.json."""
END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PRIORITY = (
    END_OF_TEXT, START_OF_TURN, END_OF_TURN, "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>",
    "</tool_response>",
)  # fmt: skip
"""Kept first where the vocabulary is too small for all."""
NUM_NEEDED = 3
"""Without the first three of them no conversation can be written."""
PLAIN_MARKS = ("tool_call", "tool_response", "think", "fim_", "repo_name", "file_sep")
"""Added tokens with these in them are not special: decoding keeps them even when special tokens are left out."""


@dataclass(frozen=True, slots=True)
class SynthTokenizer:
    """Contents of the two files, and the ids of the added tokens by text."""

    tokenizer: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]
    added: Mapping[str, int]


def byte_letters() -> list[str]:
    """The printable letter of each byte in byte-level vocabularies: itself where printable, else from U+0100 upwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x100 + NUM_BYTES))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(NUM_BYTES)]


def place_added_tokens(vocab_size: int) -> dict[str, int]:
    """Added token -> id. Raises ConfigInvalid where bytes and the needed ones do not fit."""
    text = resources.files(__package__).joinpath("published", "added_tokens.json").read_text("utf-8")
    published = {token: int(token_id) for token_id, token in json.loads(text).items()}
    if vocab_size > max(published.values()):
        return published
    room = vocab_size - NUM_BYTES
    if room < NUM_NEEDED:
        raise ConfigInvalid(
            f"vocab_size {vocab_size} is too small for a byte-level tokenizer: {NUM_BYTES + NUM_NEEDED} at least"
        )
    by_need = (*PRIORITY, *(token for token in published if token not in PRIORITY))
    kept = sorted(by_need[:room], key=published.__getitem__)
    return {token: vocab_size - len(kept) + i for i, token in enumerate(kept)}


def make_tokenizer(vocab_size: int, max_length: int) -> SynthTokenizer:
    """The files for a model with `vocab_size` rows. Raises ConfigInvalid."""
    added = place_added_tokens(vocab_size)
    letters = byte_letters()
    num_fillers = min(added.values()) - NUM_BYTES
    vocab = {letter: byte for byte, letter in enumerate(letters)}
    vocab |= {f"~{i:05x}": NUM_BYTES + i for i in range(num_fillers)}
    entries = {
        token_id: {
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": not any(mark in token for mark in PLAIN_MARKS),
        }
        for token, token_id in added.items()
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, **entry} for token_id, entry in entries.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,  # with it, a filler would be found in text that happens to spell it
            "vocab": vocab,
            "merges": [],
        },
    }
    tokenizer_config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(token_id): entry for token_id, entry in entries.items()},
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TURN,
        "errors": "replace",
        "model_max_length": max_length,
        "pad_token": END_OF_TEXT,
        "pretokenize_regex": PATTERN,
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    return SynthTokenizer(tokenizer, tokenizer_config, added)
