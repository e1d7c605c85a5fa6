"""tokenizer.json and tokenizer_config.json, read and checked: what is known of a tokenizer before the library builds it.

The table of tokens is most of the file, and is not made into Python objects: it is looked up where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from shoal.kernels.cpu import Vocabulary

from .text_errors import TokenizerInvalid

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Published tokenizer.json files are 7 to 20 MB; a larger file than this is not one."""


@dataclass(frozen=True, slots=True)
class ControlToken:
    """An added token: found in raw text as a whole, never produced from plain text."""

    token_id: int
    text: str
    is_special: bool
    """Flagged special: such a token gives no text in raw answers. Markers like `<think>` are usually not flagged."""
    strips_left: bool = False
    strips_right: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A directory's two files."""

    directory: Path
    source: bytes = field(repr=False)
    """tokenizer.json, with the added tokens that only the other file declares."""
    config: Mapping[str, Any]
    """tokenizer_config.json, empty where there is none."""
    controls: Mapping[str, ControlToken]
    """The added tokens by their text, in the order of their ids."""
    vocabulary: Vocabulary | None
    """The other tokens; None where the file has no such table."""
    decoder: str
    """What turns tokens back into text, as JSON; "null" where nothing does."""
    normalizer: str
    """What changes text before it is split, likewise."""

    @property
    def vocab_size(self) -> int | None:
        """Ids are below this; None where only the tokenizer itself can tell."""
        if self.vocabulary is None:
            return None
        return max(self.vocabulary.size, *(control.token_id + 1 for control in self.controls.values()), 0)


_NULL = msgspec.Raw(b"null")


class _File(msgspec.Struct):
    """The parts of tokenizer.json that are looked at; the rest is the library's."""

    added_tokens: msgspec.Raw = _NULL
    decoder: msgspec.Raw = _NULL
    normalizer: msgspec.Raw = _NULL
    model: msgspec.Raw = _NULL


class _Model(msgspec.Struct):
    vocab: msgspec.Raw = _NULL


def read_tokenizer_files(directory: str | Path) -> TokenizerFiles:
    """Read tokenizer.json and, where present, tokenizer_config.json.

    Added tokens that only tokenizer_config.json declares are added too, at their declared ids. Raises TokenizerInvalid.
    """
    directory = Path(directory)
    source = _read(directory / TOKENIZER_FILE)
    config_path = directory / CONFIG_FILE
    config = _json_object(_read(config_path), config_path.name) if config_path.is_file() else {}
    parts = _parts(source)
    listed = _decode(bytes(parts.added_tokens), TOKENIZER_FILE) or []
    missing = _missing_added_tokens(listed, config)
    if missing:
        tree = _json_object(source, TOKENIZER_FILE)
        listed = tree["added_tokens"] = sorted([*listed, *missing], key=lambda item: item["id"])
        source = msgspec.json.encode(tree)
    return TokenizerFiles(
        directory,
        source,
        config,
        _controls(listed),
        _vocabulary(parts.model),
        bytes(parts.decoder).decode(),
        bytes(parts.normalizer).decode(),
    )


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TokenizerInvalid(f"is longer than {MAX_FILE_BYTES:,} bytes", file=path.name)
        return path.read_bytes()
    except OSError as error:
        raise TokenizerInvalid(f"cannot be read from {path.parent}: {error.strerror}", file=path.name) from error


def _parts(source: bytes) -> _File:
    try:
        source.decode("utf-8")  # which msgspec does not look at in what it skips
        return msgspec.json.decode(source, type=_File)
    except msgspec.ValidationError as error:
        _json_object(source, TOKENIZER_FILE)
        raise TokenizerInvalid("is not a JSON object", file=TOKENIZER_FILE) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TokenizerInvalid(f"is not JSON: {error}", file=TOKENIZER_FILE) from error


def _decode(source: bytes, file: str) -> Any:
    try:
        return msgspec.json.decode(source)
    except (msgspec.DecodeError, RecursionError) as error:
        raise TokenizerInvalid(f"is not JSON: {error}", file=file) from error


def _json_object(source: bytes, file: str) -> dict[str, Any]:
    value = _decode(source, file)
    if not isinstance(value, dict):
        raise TokenizerInvalid("is not a JSON object", file=file)
    return value


def _missing_added_tokens(listed: Any, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Entries of the config's `added_tokens_decoder` that tokenizer.json lacks, in tokenizer.json's form."""
    declared = config.get("added_tokens_decoder") or {}
    try:
        have = {item["content"] for item in listed if isinstance(item["id"], int)}
        return [
            {
                "id": int(index),
                "content": item["content"],
                "single_word": bool(item.get("single_word", False)),
                "lstrip": bool(item.get("lstrip", False)),
                "rstrip": bool(item.get("rstrip", False)),
                "normalized": bool(item.get("normalized", False)),
                "special": bool(item.get("special", False)),
            }
            for index, item in declared.items()
            if item["content"] not in have
        ]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _unknown_form() from error


def _controls(listed: Any) -> dict[str, ControlToken]:
    try:
        controls = [
            ControlToken(
                item["id"],
                item["content"],
                bool(item.get("special", False)),
                bool(item.get("lstrip", False)),
                bool(item.get("rstrip", False)),
            )
            for item in listed
            if item["content"]  # the library drops an empty one
        ]
        if any(type(control.token_id) is not int or not isinstance(control.text, str) for control in controls):
            raise _unknown_form()
        return {control.text: control for control in sorted(controls, key=lambda control: control.token_id)}
    except (TypeError, KeyError, AttributeError) as error:
        raise _unknown_form() from error


def _unknown_form() -> TokenizerInvalid:
    return TokenizerInvalid("its added tokens have an unknown form", file=TOKENIZER_FILE)


def _vocabulary(model: msgspec.Raw) -> Vocabulary | None:
    """The model's table of tokens, where it is one of ids by token."""
    try:
        return Vocabulary(bytes(msgspec.json.decode(model, type=_Model).vocab))
    except (msgspec.DecodeError, ValueError):
        return None
