import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from shoal.runtime.text_errors import TokenizerInvalid
from shoal.runtime.tokenizer import Tokenizer
from shoal.runtime.tokenizer_files import read_tokenizer_files

LITERALS = [
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "<tts_text_bos_single>",
    "<|im_",
    "start|>",
]
salted = st.lists(st.one_of(st.sampled_from(LITERALS), st.text(max_size=8)), max_size=8).map("".join)


@pytest.fixture(scope="module")
def library(tiny_dir):
    return Library.from_file(str(tiny_dir / "tokenizer.json"))


@given(text=salted)
def test_raw_text_encodes_as_the_library_does(tokenizer, library, text):
    assert tokenizer.encode_raw(text) == library.encode(text, add_special_tokens=False).ids


@given(text=salted)
def test_plain_text_keeps_its_letters_and_yields_no_control_token(tokenizer, text):
    ids = tokenizer.encode_plain(text)
    assert all(tokenizer.control(index) is None for index in ids)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


@given(text=st.text(max_size=30))
def test_without_control_strings_raw_and_plain_agree(tokenizer, text):
    if not tokenizer.control_pattern.search(text):
        assert tokenizer.encode_plain(text) == tokenizer.encode_raw(text)


@given(data=st.data())
def test_decoding_agrees_with_the_library(tokenizer, library, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=False)
    assert tokenizer.decode(ids, skip_special=True) == library.decode(ids, skip_special_tokens=True)


@given(text=salted)
def test_the_fewest_tokens_of_a_text_are_not_more_than_it_has(tokenizer, text):
    assert tokenizer.fewest_tokens(text) <= min(len(tokenizer.encode_raw(text)), len(tokenizer.encode_plain(text)))


def test_the_fewest_tokens_grow_with_the_text(tokenizer):
    assert tokenizer.fewest_tokens("") == 0
    assert tokenizer.fewest_tokens("a" * 100_000) > 1000


def test_every_byte_has_a_token_of_its_own(tokenizer):
    assert {tokenizer.token_bytes(index) for index in range(tokenizer.vocab_size)} >= {bytes([b]) for b in range(256)}


@pytest.mark.parametrize("is_ordered", [True, False])
def test_tokens_that_are_not_written_in_letters_of_bytes_stand_for_their_text(tiny_dir, tmp_path, is_ordered):
    """Nor does the order matter in which a file lists them."""
    tree = json.loads((tiny_dir / "tokenizer.json").read_text("utf-8"))
    tree["model"]["merges"] = []
    vocab = tree["model"]["vocab"]
    ids = [vocab.pop(token) for token in list(vocab)[-2:]]
    vocab |= zip(["\u65e5\u672c", "a\u0120b"], ids, strict=True)
    if not is_ordered:
        tree["model"]["vocab"] = dict(reversed(vocab.items()))
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree), "utf-8")
    odd = Tokenizer.load(tmp_path)
    assert list(map(odd.token_bytes, ids)) == ["\u65e5\u672c".encode(), b"a b"]
    assert odd.token_bytes(vocab["a"]) == b"a"


def test_bytes_of_control_and_unknown_ids(tokenizer):
    think = tokenizer.control_id("<think>")
    assert tokenizer.token_bytes(think) == b"<think>"
    assert tokenizer.token_bytes(tokenizer.vocab_size) == tokenizer.token_bytes(-1) == b""


def test_flags_and_named_tokens(tokenizer, flagged_tokenizer):
    assert tokenizer.is_special(tokenizer.eos_id)
    assert tokenizer.decode([tokenizer.eos_id]) == "<|im_end|>"
    assert not tokenizer.is_special(tokenizer.control_id("<think>"))
    assert flagged_tokenizer.is_special(flagged_tokenizer.control_id("<think>"))
    assert not tokenizer.is_special(0)
    assert dict(tokenizer.named_tokens) == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def test_segments_encode_as_raw_text_would(tokenizer):
    start, end = tokenizer.controls["<|im_start|>"], tokenizer.controls["<|im_end|>"]
    segments = [start, "user\n", "é and ", "tools", end, "\n"]
    assert tokenizer.encode_segments(segments) == tokenizer.encode_raw("<|im_start|>user\né and tools<|im_end|>\n")
    assert start.token_id not in tokenizer.encode_segments(["<|im_start|>"])


def test_a_token_that_swallows_white_space_does_so_between_segments(tiny_dir, tmp_path):
    tree = json.loads((tiny_dir / "tokenizer.json").read_text(encoding="utf-8"))
    for item in tree["added_tokens"]:
        item["lstrip"] = item["rstrip"] = item["content"] == "<think>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    think = tokenizer.controls["<think>"]
    assert tokenizer.encode_segments(["a \n", think, " b"]) == tokenizer.encode_raw("a \n<think> b")


def test_lone_surrogates_read_as_replacement_characters(tokenizer):
    assert tokenizer.decode(tokenizer.encode_plain("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode_raw("\ud83d\ude00")) == "\U0001f600"


def test_added_tokens_of_the_config_alone_are_known(tiny_dir, tmp_path):
    tree = json.loads((tiny_dir / "tokenizer.json").read_text(encoding="utf-8"))
    last = tree["added_tokens"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    declared = {str(last["id"]): {"content": last["content"], "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": declared}), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode_raw(last["content"]) == [last["id"]]

    declared = {str(last["id"] + 7): {"content": last["content"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": declared}), encoding="utf-8")
    with pytest.raises(TokenizerInvalid, match="cannot have id"):
        Tokenizer.load(tmp_path)


def test_a_control_string_in_the_base_vocabulary_is_spelled_in_bytes(tmp_path):
    vocab = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab["<x>"] = len(vocab)
    library = Library(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<x>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode_raw("<x>") == [vocab["<x>"]]
    assert tokenizer.encode_plain("<x>") == [vocab["<"], vocab["x"], vocab[">"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "is no tokenizer"),
        (b'{"added_tokens": [1]}', "unknown form"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerInvalid, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.file == "tokenizer.json"


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path):
    Library(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerInvalid, match="byte-level"):
        Tokenizer.load(tmp_path)


def test_a_table_without_ids_is_the_librarys_to_refuse(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}')
    assert read_tokenizer_files(tmp_path).vocab_size is None
    for at_once in (True, False):
        with pytest.raises(TokenizerInvalid, match="is no tokenizer"):
            Tokenizer.of(read_tokenizer_files(tmp_path), at_once=at_once)


@given(text=salted)
def test_built_later_it_is_the_same(tokenizer, tiny_dir, text):
    later = Tokenizer.of(read_tokenizer_files(tiny_dir), at_once=False)
    assert later.controls == tokenizer.controls
    assert later.vocab_size == tokenizer.vocab_size
    assert later.control_pattern == tokenizer.control_pattern
    assert later.fewest_tokens(text) == tokenizer.fewest_tokens(text)
    assert later.decode(range(later.vocab_size)) == tokenizer.decode(range(later.vocab_size))
    assert later.encode_raw(text) == tokenizer.encode_raw(text)
    assert later.encode_plain(text) == tokenizer.encode_plain(text)


def test_the_added_tokens_are_those_of_the_library(library, tokenizer):
    theirs = {
        token.content: (index, token.special, token.lstrip, token.rstrip)
        for index, token in library.get_added_tokens_decoder().items()
    }
    ours = {
        text: (token.token_id, token.is_special, token.strips_left, token.strips_right)
        for text, token in tokenizer.controls.items()
    }
    assert ours == theirs


def test_built_later_what_is_wrong_is_said_when_it_is_needed(tiny_dir, tmp_path):
    tree = json.loads((tiny_dir / "tokenizer.json").read_text(encoding="utf-8"))
    tree["model"]["merges"] = [["no such", "token"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    later = Tokenizer.of(read_tokenizer_files(tmp_path), at_once=False)
    assert later.token_bytes(0) != b""
    for _ in range(2):
        with pytest.raises(TokenizerInvalid, match="is no tokenizer"):
            later.encode_raw("a")
    with pytest.raises(TokenizerInvalid, match="is no tokenizer"):
        Tokenizer.load(tmp_path)
