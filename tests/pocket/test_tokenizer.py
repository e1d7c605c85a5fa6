"""The tokenizer returns every text, keeps the letters of task words apart, and the chat text is the template's."""

import json
from random import Random

import pytest

from models.pocket.curriculum import MEASURED, Mix, measured_conversation, training_conversation
from models.pocket.delta_rule import Shape
from models.pocket.export import HERE, config, generation_config
from models.pocket.render import pieces
from models.pocket.tokenizer import ADDED, Encoder, build, load
from models.pocket.words import CITIES, NAMES, WORDS


@pytest.fixture(scope="module")
def encoder():
    return Encoder(load())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What is 17 + 25?",
        "  two  spaces\n\n\ttab",
        "naïve Straße 東京 🐟",
        "<think>\n\n</think>\n\n",
        "a\r\nb",
        "\x00\x7f",
    ],
)
def test_round_trip(encoder, text):
    assert encoder.tok.decode(encoder.text(text), skip_special_tokens=False) == text


def test_random_bytes_round_trip(encoder):
    rng = Random(8)
    for _ in range(200):
        text = "".join(chr(rng.choice([rng.randint(32, 126), rng.randint(0x4E00, 0x9FFF)])) for _ in range(30))
        assert encoder.tok.decode(encoder.text(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("word", [*WORDS[::7], *NAMES[::9], *CITIES[::9]])
def test_task_words_are_single_letters(encoder, word):
    assert [encoder.tok.id_to_token(i) for i in encoder.text(f"Reverse {word}")][2:] == list(word)


def test_common_words_are_one_token(encoder):
    assert len(encoder.text("What is the weather")) == 4


def test_the_committed_file_is_what_the_program_builds():
    assert json.loads(build().to_str()) == json.loads((HERE / "tokenizer.json").read_text("utf-8"))


def test_added_tokens_fit_the_rows(encoder):
    ids = [encoder.tok.token_to_id(t) for t in ADDED]
    assert ids == list(range(ids[0], ids[0] + len(ADDED)))
    assert ids[-1] < Shape().vocab


def test_configs_are_what_the_program_writes():
    assert json.loads((HERE / "config.json").read_text("utf-8")) == config(Shape())
    assert json.loads((HERE / "generation_config.json").read_text("utf-8")) == generation_config()


def test_chat_text_equals_the_template(encoder):
    transformers = pytest.importorskip("transformers")
    # The class that transformers picks by the model type rebuilds the tokenizer without ``ignore_merges``.
    tok = transformers.PreTrainedTokenizerFast.from_pretrained(HERE)
    rng = Random(12)
    for i in range(120):
        if i % 2:
            c = training_conversation(rng, Mix(), encoder.count)
        else:
            c = measured_conversation(rng, MEASURED[i // 2 % len(MEASURED)], encoder.count)
        expected = tok.apply_chat_template(c.messages, tools=c.tools or None, tokenize=False)
        assert "".join(text for text, _ in pieces(c)) == expected
        assert encoder.conversation(c)[0] == encoder.tok.encode(expected, add_special_tokens=False).ids
    for thinking, tail in ((True, "<think>\n"), (False, "<think>\n\n</think>\n\n"), (None, "<think>\n\n</think>\n\n")):
        switch = {} if thinking is None else {"enable_thinking": thinking}
        text = tok.apply_chat_template(
            [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True, **switch
        )
        assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n" + tail
