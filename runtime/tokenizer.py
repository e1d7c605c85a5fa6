"""Text to ids and back, by the checkpoint's own tokenizer.json.

Two ways to encode, and the difference is a matter of safety:

- `encode_raw` reads control strings (`<|im_start|>`, `<think>`, ...) as the tokens they spell;
- `encode_plain` never yields an added token, whatever the text spells. Text that came from somebody goes this way.

Only byte-level BPE is served: there every id stands for a fixed run of bytes, which is what the detokenizer and the parser
build on.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from .text_errors import TokenizerInvalid

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Published tokenizer.json files are 7 to 20 MB; a larger file than this is not one."""

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Named tokens of tokenizer_config.json that a chat template sees as variables."""


@dataclass(frozen=True, slots=True)
class ControlToken:
    """An added token: found in raw text as a whole, never produced from plain text."""

    token_id: int
    text: str
    is_special: bool
    """Flagged special: such a token gives no text in raw answers. Markers like `<think>` are usually not flagged."""
    strips_left: bool = False
    strips_right: bool = False


def _byte_of_letter() -> dict[str, int]:
    """The printable stand-ins of the 256 bytes in byte-level vocabularies: bytes that print stand for themselves, the
    others for U+0100 onwards in their order (the mapping that GPT-2 introduced)."""
    letters: dict[str, int] = {}
    for byte in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]:
        letters[chr(byte)] = byte
    for byte in range(256):
        if chr(byte) not in letters:
            letters[chr(0x100 + len(letters) - 188)] = byte
    return letters


_BYTE_OF_LETTER = _byte_of_letter()
_LETTER_OF_BYTE = {byte: letter for letter, byte in _BYTE_OF_LETTER.items()}


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """tokenizer.json and tokenizer_config.json, parsed: what is known before the tokenizer itself is built."""

    directory: Path
    text: str
    """tokenizer.json, with the added tokens that only the other file declares."""
    config: Mapping[str, Any]
    added: Mapping[str, int]
    """Ids of the added tokens by their text."""
    vocab: Mapping[str, int] | None
    """The other tokens; None where the file has no such table."""

    @property
    def vocab_size(self) -> int | None:
        """Ids are below this; None where only the tokenizer itself can tell."""
        return None if self.vocab is None else max([*self.vocab.values(), *self.added.values()], default=-1) + 1


def read_tokenizer_files(directory: str | Path) -> TokenizerFiles:
    """Read tokenizer.json and, where present, tokenizer_config.json.

    Added tokens that only tokenizer_config.json declares are added too, at their declared ids. Raises TokenizerInvalid.
    """
    directory = Path(directory)
    source = _read(directory / "tokenizer.json")
    config_path = directory / "tokenizer_config.json"
    config = _json_object(_read(config_path), config_path.name) if config_path.is_file() else {}
    tree = _json_object(source, "tokenizer.json")
    text = source.decode("utf-8")  # msgspec has checked that it is UTF-8
    missing = _missing_added_tokens(tree, config)
    if missing:
        tree["added_tokens"] = sorted([*(tree.get("added_tokens") or []), *missing], key=lambda item: item["id"])
        text = msgspec.json.encode(tree).decode("utf-8")
    added = {item["content"]: item["id"] for item in tree.get("added_tokens") or []}
    return TokenizerFiles(directory, text, config, added, _vocab(tree))


class Tokenizer:
    """Immutable after loading; safe to use from several threads."""

    def __init__(
        self, full: tokenizers.Tokenizer, config: Mapping[str, Any], directory: Path, vocab: Mapping[str, int]
    ) -> None:
        """Use `load`. `vocab`: every token of `full` but the added ones. Raises TokenizerInvalid where it is not byte-level."""
        if not _is_byte_level(full):
            raise TokenizerInvalid("only byte-level tokenizers are served", file="tokenizer.json")
        self.directory = directory
        self.config = config
        """tokenizer_config.json as a mapping, empty where there is none."""
        self._full = full
        # The same model object without the added tokens: no second vocabulary in memory.
        self._plain = tokenizers.Tokenizer(full.model)
        self._plain.normalizer = full.normalizer
        self._plain.pre_tokenizer = full.pre_tokenizer
        added = full.get_added_tokens_decoder()
        self.controls: Mapping[str, ControlToken] = {
            token.content: ControlToken(index, token.content, token.special, token.lstrip, token.rstrip)
            for index, token in sorted(added.items())
        }
        """The added tokens by their text."""
        self._controls_by_id = {control.token_id: control for control in self.controls.values()}
        self._control_ids = frozenset(self._controls_by_id)
        longest_first = sorted(self.controls, key=len, reverse=True)
        self.control_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        """Finds the text of any added token, the longest first."""
        self.vocab_size: int = max([*vocab.values(), *self._controls_by_id], default=-1) + 1
        """Ids are below this; the model's head may have more rows."""
        self._longest_token_bytes = max(map(len, (*vocab, *self.controls)), default=0)
        self._normalises_to_nfc = "NFC" in repr(full.normalizer)
        self._keeps_length = full.normalizer is None or self._normalises_to_nfc
        self.named_tokens: Mapping[str, str] = _named_tokens(config)

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """From a directory's files. Raises TokenizerInvalid."""
        return cls.of(read_tokenizer_files(directory))

    @classmethod
    def of(cls, files: TokenizerFiles) -> Tokenizer:
        """From files that were read. Raises TokenizerInvalid."""
        try:
            full = tokenizers.Tokenizer.from_str(files.text)
        except Exception as error:  # the library raises a bare Exception
            raise TokenizerInvalid(f"is no tokenizer: {error}", file="tokenizer.json") from error
        for content, index in files.added.items():
            if full.token_to_id(content) != index:
                raise TokenizerInvalid(f"{content!r} cannot have id {index}", file="tokenizer.json")
        full.no_padding()
        full.no_truncation()
        # The file's own table: asking the library for its copy takes longer than reading the file.
        vocab = files.vocab if files.vocab is not None else full.get_vocab(with_added_tokens=False)
        return cls(full, files.config, files.directory, vocab)

    def encode_raw(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of trusted text: control strings are parsed. With `add_special_tokens`, also what the tokenizer's own
        post-processor puts around a text (nothing in this family). Lone surrogates are read as U+FFFD."""
        return _ids(self._full, text, add_special_tokens)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of anybody's text: no control token comes out."""
        if not text:
            return []
        ids = _ids(self._plain, text, False)
        if self._control_ids.isdisjoint(ids):
            return ids
        # The base vocabulary holds a control token as an ordinary entry too: spell that one in bytes.
        return [piece for index in ids for piece in (self._spell(index) if index in self._control_ids else (index,))]

    def encode_segments(self, segments: Iterable[str | ControlToken]) -> list[int]:
        """Ids of plain texts with control tokens between them, split as the library splits raw text."""
        ids: list[int] = []
        text = ""
        strips_left = False
        for segment in segments:
            if isinstance(segment, str):
                text += segment
                continue
            if strips_left:
                text = text.lstrip()
            ids += self.encode_plain(text.rstrip() if segment.strips_left else text)
            ids.append(segment.token_id)
            text, strips_left = "", segment.strips_right
        ids += self.encode_plain(text.lstrip() if strips_left else text)
        return ids

    def fewest_tokens(self, text: str) -> int:
        """A number of tokens that this text has at least, told without encoding it: no token is longer than the longest.

        0 where the tokenizer normalises in a way that may shorten text by any amount.
        """
        if not self._keeps_length:
            return 0
        text = _well_formed(text)
        if self._normalises_to_nfc and not text.isascii():
            text = unicodedata.normalize("NFC", text)
        return -(-len(text.encode("utf-8")) // max(1, self._longest_token_bytes))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that this id stands for; for a control token its text in UTF-8, for an unknown id nothing."""
        control = self._controls_by_id.get(token_id)
        if control is not None:
            return control.text.encode("utf-8")
        if not 0 <= token_id < self.vocab_size:
            return b""
        token: str | None = self._full.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes(map(_BYTE_OF_LETTER.__getitem__, token))
        except KeyError:
            return token.encode("utf-8")

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of these ids; bytes that are not UTF-8 read as U+FFFD. `skip_special` leaves out tokens flagged special."""
        kept = (index for index in token_ids if not (skip_special and self.is_special(index)))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", errors="replace")

    def is_special(self, token_id: int) -> bool:
        """Whether the id is an added token with the special flag."""
        control = self._controls_by_id.get(token_id)
        return control is not None and control.is_special

    def control(self, token_id: int) -> ControlToken | None:
        """The added token with this id."""
        return self._controls_by_id.get(token_id)

    def control_id(self, text: str) -> int | None:
        """Id of the added token with this text."""
        control = self.controls.get(text)
        return None if control is None else control.token_id

    @property
    def eos_id(self) -> int | None:
        """Id of tokenizer_config's `eos_token`."""
        return self.control_id(self.named_tokens.get("eos_token", ""))

    def _spell(self, token_id: int) -> list[int]:
        """The same bytes, one base token each. Raises TokenizerInvalid where the vocabulary lacks a byte."""
        ids: list[int] = []
        for byte in self.token_bytes(token_id):
            index = self._full.token_to_id(_LETTER_OF_BYTE[byte])
            if index is None or index in self._control_ids:
                raise TokenizerInvalid(f"token {token_id} cannot be spelled in bytes", file="tokenizer.json")
            ids.append(index)
        return ids


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TokenizerInvalid(f"is longer than {MAX_FILE_BYTES:,} bytes", file=path.name)
        return path.read_bytes()
    except OSError as error:
        raise TokenizerInvalid(f"cannot be read from {path.parent}: {error.strerror}", file=path.name) from error


def _json_object(source: bytes, file: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(source)
    except (msgspec.DecodeError, RecursionError) as error:
        raise TokenizerInvalid(f"is not JSON: {error}", file=file) from error
    if not isinstance(value, dict):
        raise TokenizerInvalid("is not a JSON object", file=file)
    return value


def _missing_added_tokens(tree: Mapping[str, Any], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Entries of the config's `added_tokens_decoder` that tokenizer.json lacks, in tokenizer.json's form."""
    listed = tree.get("added_tokens") or []
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
        raise TokenizerInvalid("its added tokens have an unknown form", file="tokenizer.json") from error


def _vocab(tree: Mapping[str, Any]) -> Mapping[str, int] | None:
    """The model's table of tokens, where it is one of ids by token."""
    model = tree.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    is_table = isinstance(vocab, dict) and all(type(index) is int for index in vocab.values())
    return vocab if is_table else None


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and so on, each a string or an object with `content`."""
    named: dict[str, str] = {}
    for name in NAMED_TOKENS:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            named[name] = value
    return named


def _is_byte_level(full: tokenizers.Tokenizer) -> bool:
    return "ByteLevel" in repr(full.decoder)


def _ids(tokenizer: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    # As a batch of one: only batches let go of the interpreter's lock, and a long prompt takes seconds.
    (encoding,) = tokenizer.encode_batch_fast([_well_formed(text)], add_special_tokens=add_special_tokens)
    return list(encoding.ids)


def _well_formed(text: str) -> str:
    """Lone surrogates cannot be encoded; they read as U+FFFD, like any other broken text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")
    return text
