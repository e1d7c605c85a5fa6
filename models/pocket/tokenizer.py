"""Builds pocket's tokenizer and reads it: whole words that occur often, single bytes for all else.

``python -m models.pocket.tokenizer`` writes tokenizer.json and tokenizer_config.json.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from models.pocket.curriculum import Conversation, Message, Mix, training_conversation
from models.pocket.render import pieces
from models.pocket.words import CITIES, NAMES, WORDS

HERE = Path(__file__).resolve().parent
ROWS = 768
# The splitting rule of the family: single digits, letters with one leading non-letter, line ends apart.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The added tokens of the family in its order; True marks those that a decoder may skip.
ADDED = {
    "<|endoftext|>": True, "<|im_start|>": True, "<|im_end|>": True, "<|object_ref_start|>": True,
    "<|object_ref_end|>": True, "<|box_start|>": True, "<|box_end|>": True, "<|quad_start|>": True,
    "<|quad_end|>": True, "<|vision_start|>": True, "<|vision_end|>": True, "<|vision_pad|>": True,
    "<|image_pad|>": True, "<|video_pad|>": True, "<tool_call>": False, "</tool_call>": False,
    "<|fim_prefix|>": False, "<|fim_middle|>": False, "<|fim_suffix|>": False, "<|fim_pad|>": False,
    "<|repo_name|>": False, "<|file_sep|>": False, "<tool_response>": False, "</tool_response>": False,
    "<think>": False, "</think>": False, "<|audio_start|>": True, "<|audio_end|>": True,
    "<tts_pad>": True, "<tts_text_bos>": True, "<tts_text_eod>": True, "<tts_text_bos_single>": True,
    "<|audio_pad|>": True,
}  # fmt: skip


def byte_letters() -> list[str]:
    """The printable stand-in of each byte 0..255 used by byte-level tokenizers."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {b: chr(b) for b in keep}, 0
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + extra)
            extra += 1
    return [table[b] for b in range(256)]


def _splitter() -> pre_tokenizers.Sequence:
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def build(samples: int = 6000, seed: int = 1, least: int = 20) -> Tokenizer:
    """Vocabulary: 256 bytes, then the pretokens of ``samples`` conversations seen ``least`` times or more.

    Words of the letter tasks, names, cities and single letters after a space stay out.
    """
    rng, splitter, seen = Random(seed), _splitter(), Counter[str]()
    controls = list(ADDED)
    for _ in range(samples):
        c = training_conversation(rng, Mix(), lambda ms: 12 * len(ms))
        for text, _loss in pieces(c):
            for mark in controls:
                text = text.replace(mark, "\0")
            for part in text.split("\0"):
                seen.update(p for p, _ in splitter.pre_tokenize_str(part))
    payload = {w.lower() for w in [*WORDS, *NAMES, *CITIES]}
    letters = byte_letters()
    vocab = {c: i for i, c in enumerate(letters)}
    for piece, n in sorted(seen.items(), key=lambda kv: (-kv[1], kv[0])):
        bare = piece.replace("Ġ", "").strip("\"'.,:;").lower()
        lone = piece[0] == "Ġ" and len(piece) == 2 and piece[1].isalpha() and piece != "Ġa" and piece != "ĠI"
        if n >= least and piece not in vocab and bare not in payload and not lone:
            vocab[piece] = len(vocab)
    if len(vocab) + len(controls) > ROWS:
        raise ValueError(f"{len(vocab)} tokens and {len(controls)} controls exceed {ROWS} rows")
    bpe = models.BPE(vocab=vocab, merges=[], ignore_merges=True)
    tok = Tokenizer(bpe)
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = splitter
    tok.decoder = decoders.ByteLevel()
    for text, special in ADDED.items():
        token = AddedToken(text, special=special, normalized=False)
        if special:
            tok.add_special_tokens([token])
        else:
            tok.add_tokens([token])
    return tok


def load() -> Tokenizer:
    """The committed tokenizer."""
    return Tokenizer.from_file(str(HERE / "tokenizer.json"))


class Encoder:
    """Conversations to ids and loss flags."""

    def __init__(self, tok: Tokenizer) -> None:
        self.tok = tok
        self._cache: dict[str, list[int]] = {}

    def text(self, text: str) -> list[int]:
        """Ids of a text that may hold control tokens."""
        ids = self._cache.get(text)
        if ids is None:
            ids = self.tok.encode(text, add_special_tokens=False).ids
            if len(self._cache) < 4096:
                self._cache[text] = ids
        return ids

    def conversation(self, c: Conversation) -> tuple[list[int], list[bool]]:
        """Ids, and for each whether the assistant wrote it (those carry loss)."""
        ids: list[int] = []
        loss: list[bool] = []
        for text, flag in pieces(c):
            part = self.text(text)
            ids += part
            loss += [flag] * len(part)
        return ids, loss

    def count(self, messages: list[Message]) -> int:
        """Tokens of these messages in the chat format, 5 for the frame of each."""
        return sum(5 + len(self.text(str(m["content"]))) for m in messages)


def main() -> None:
    tok = build()
    tok.save(str(HERE / "tokenizer.json"))
    added = {
        str(i): {"content": t.content, "lstrip": False, "normalized": False, "rstrip": False,
                 "single_word": False, "special": t.special}
        for i, t in sorted(tok.get_added_tokens_decoder().items())
    }  # fmt: skip
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 8192,
        "pad_token": "<|endoftext|>",
        "pretokenize_regex": SPLIT,
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    (HERE / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    print(tok.get_vocab_size(), "tokens")


if __name__ == "__main__":
    main()
