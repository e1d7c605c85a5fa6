"""Text to ids and back, by the checkpoint's own tokenizer.json.

Two ways to encode, and the difference is a matter of safety:

- `encode_raw` reads control strings (`<|im_start|>`, `<think>`, ...) as the tokens they spell;
- `encode_plain` never yields an added token, whatever the text spells. Text that came from somebody goes this way.

Only byte-level BPE is served: there every id stands for a fixed run of bytes, which is what the detokenizer and the parser
build on.
"""

from __future__ import annotations

import codecs
import re
import threading
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.kernels.cpu import Vocabulary

from .text_errors import TokenizerInvalid
from .tokenizer_files import ControlToken, TokenizerFiles, read_tokenizer_files

if TYPE_CHECKING:
    import tokenizers

__all__ = ["ControlToken", "Tokenizer"]

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Named tokens of tokenizer_config.json that a chat template sees as variables."""


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
_text_of = msgspec.json.Decoder(str).decode
_LETTERS = codecs.charmap_build("".join(_LETTER_OF_BYTE[byte] for byte in range(256)))
"""The same as a table of the codec, which reads letters as bytes without the interpreter."""


@dataclass(frozen=True, slots=True)
class _Encoders:
    """The library's tokenizers."""

    full: tokenizers.Tokenizer
    plain: tokenizers.Tokenizer
    """The same model object without the added tokens: no second vocabulary in memory."""


class Tokenizer:
    """Immutable after loading; safe to use from several threads."""

    def __init__(self, files: TokenizerFiles, vocabulary: Vocabulary, encoders: _Encoders | None) -> None:
        """Use `load` or `of`. `encoders`: None to build them when something is encoded. Raises TokenizerInvalid where it is not byte-level."""
        if "ByteLevel" not in files.decoder:
            raise TokenizerInvalid("only byte-level tokenizers are served", file="tokenizer.json")
        self.directory = files.directory
        self.config = files.config
        """tokenizer_config.json as a mapping, empty where there is none."""
        self._encoders = encoders
        self._unbuilt = files if encoders is None else None
        self._building = threading.Lock()
        self._vocabulary = vocabulary
        self.controls: Mapping[str, ControlToken] = files.controls
        """The added tokens by their text."""
        self._controls_by_id = {control.token_id: control for control in self.controls.values()}
        self._control_ids = frozenset(self._controls_by_id)
        self.special_ids = frozenset(control.token_id for control in self.controls.values() if control.is_special)
        """Added tokens with the special flag: no text of an answer."""
        longest_first = sorted(self.controls, key=len, reverse=True)
        self.control_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        """Finds the text of any added token, the longest first."""
        self.vocab_size: int = max(vocabulary.size, *(index + 1 for index in self._controls_by_id), 0)
        """Ids are below this; the model's head may have more rows."""
        self._longest_token_bytes = max(vocabulary.longest, *map(len, self.controls), 0)
        self._normalises_to_nfc = "NFC" in files.normalizer
        self._keeps_length = files.normalizer == "null" or self._normalises_to_nfc
        self.named_tokens: Mapping[str, str] = _named_tokens(files.config)

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """From a directory's files. Raises TokenizerInvalid."""
        return cls.of(read_tokenizer_files(directory))

    @classmethod
    def of(cls, files: TokenizerFiles, *, at_once: bool = True) -> Tokenizer:
        """From files that were read. Not `at_once`: what encodes is built when it is first asked for, and whatever is wrong with it is
        raised then; decoding needs none of it. Raises TokenizerInvalid."""
        if not at_once and files.vocabulary is not None:
            return cls(files, files.vocabulary, None)
        encoders = _build(files)
        return cls(files, files.vocabulary or _vocabulary_of(encoders.full), encoders)

    @property
    def _library(self) -> _Encoders:
        """Raises TokenizerInvalid."""
        with self._building:
            if self._encoders is None:
                assert self._unbuilt is not None
                self._encoders = _build(self._unbuilt)
                self._unbuilt = None
            return self._encoders

    def encode_raw(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of trusted text: control strings are parsed. With `add_special_tokens`, also what the tokenizer's own
        post-processor puts around a text (nothing in this family). Lone surrogates are read as U+FFFD."""
        return _ids(self._library.full, text, add_special_tokens)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of anybody's text: no control token comes out."""
        if not text:
            return []
        ids = _ids(self._library.plain, text, False)
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
        literal = self._vocabulary.literal(token_id)
        if literal is None:
            return b""
        token = _text_of(literal)
        try:
            return codecs.charmap_encode(token, "strict", _LETTERS)[0]
        except UnicodeEncodeError:
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
            index = self._library.full.token_to_id(_LETTER_OF_BYTE[byte])
            if index is None or index in self._control_ids:
                raise TokenizerInvalid(f"token {token_id} cannot be spelled in bytes", file="tokenizer.json")
            ids.append(index)
        return ids


def _build(files: TokenizerFiles) -> _Encoders:
    """Raises TokenizerInvalid."""
    import tokenizers  # loads a library of megabytes, which an answer to ids does without

    try:
        full = tokenizers.Tokenizer.from_buffer(files.source)
    except Exception as error:  # the library raises a bare Exception
        raise TokenizerInvalid(f"is no tokenizer: {error}", file="tokenizer.json") from error
    for content, control in files.controls.items():
        if full.token_to_id(content) != control.token_id:
            raise TokenizerInvalid(f"{content!r} cannot have id {control.token_id}", file="tokenizer.json")
    full.no_padding()
    full.no_truncation()
    plain = tokenizers.Tokenizer(full.model)
    plain.normalizer = full.normalizer
    plain.pre_tokenizer = full.pre_tokenizer
    return _Encoders(full, plain)


def _vocabulary_of(full: tokenizers.Tokenizer) -> Vocabulary:
    """Where the file itself has no table of ids by token. Raises TokenizerInvalid."""
    try:
        return Vocabulary(msgspec.json.encode(full.get_vocab(with_added_tokens=False)))
    except ValueError as error:
        raise TokenizerInvalid(f"its table of tokens {error}", file="tokenizer.json") from error


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
