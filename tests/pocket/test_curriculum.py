"""Conversations are pure functions of the seed, never train on a held-out prompt, and have right answers."""

import hashlib
import json
import re
from random import Random

import pytest

from models.pocket.batches import pool
from models.pocket.curriculum import (
    MEASURED,
    Mix,
    held_out,
    last_user,
    measured_conversation,
    training_conversation,
)
from models.pocket.skills import SKILLS, addition_thought, subtraction_thought
from models.pocket.tokenizer import Encoder, load
from models.pocket.train import PHASES, mix_at
from models.pocket.words import word_with_count


@pytest.fixture(scope="module")
def encoder():
    return Encoder(load())


def draws(encoder, seed, count, mix):
    rng = Random(seed)
    return [training_conversation(rng, mix, encoder.count) for _ in range(count)]


def test_the_rule_is_the_published_one():
    for text in ("What is 17 + 25?", "Hello", "Grüße"):
        assert held_out(text) == (int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16) % 10 == 0)
    assert not held_out("What is 17 + 25?")


@pytest.mark.parametrize("phase", range(len(PHASES)))
def test_no_training_message_is_held_out(encoder, phase):
    for c in draws(encoder, 5, 1200, PHASES[phase][1]):
        assert not [m for m in c.messages if m["role"] == "user" and held_out(m["content"])]


@pytest.mark.parametrize("skill", MEASURED)
def test_measured_prompts_are_held_out(encoder, skill):
    rng = Random(3)
    for _ in range(8):
        assert held_out(last_user(measured_conversation(rng, skill, encoder.count)))


def test_same_seed_same_data(encoder):
    one, two = draws(encoder, 9, 200, Mix()), draws(encoder, 9, 200, Mix())
    assert [c.messages for c in one] == [c.messages for c in two]
    assert [c.messages for c in one] != [c.messages for c in draws(encoder, 10, 200, Mix())]
    a, b = pool(1, 4, Mix(), encoder), pool(1, 4, Mix(), Encoder(load()))
    assert all(bool((x.ids == y.ids).all()) for x, y in zip(a, b, strict=True))


def test_the_mix_follows_the_step():
    assert mix_at(0, 1000) == PHASES[0][1]
    assert mix_at(999, 1000) == PHASES[-1][1]


def test_recall_lies_a_thousand_tokens_back(encoder):
    rng = Random(1)
    for _ in range(5):
        c = measured_conversation(rng, "memory_1000", encoder.count)
        ids, _ = encoder.conversation(c)
        assert len(ids) >= 1000


@pytest.mark.parametrize("skill", ["add", "sub"])
def test_sums_are_right(skill):
    rng = Random(2)
    for _ in range(300):
        item = SKILLS[skill](rng)
        a, b, result = re.fullmatch(r"(\d+) [+-] (\d+) = (-?\d+)", item.answer).groups()
        assert int(result) == (int(a) + int(b) if skill == "add" else int(a) - int(b))


@pytest.mark.parametrize(
    ("thought", "lines"),
    [
        (addition_thought(17, 25), "17+25\n7+5+0=12\n1+2+1=04"),
        (addition_thought(5, 125), "005+125\n5+5+0=10\n0+2+1=03\n0+1+0=01"),
        (subtraction_thought(96, 38), "96-38\n6-8-0=18\n9-3-1=05"),
        (subtraction_thought(3, 10), "03-10\nminus\n10-03\n0-3-0=17\n1-0-1=00"),
    ],
)
def test_thoughts(thought, lines):
    assert thought == lines


@pytest.mark.parametrize("count", range(5))
def test_words_have_the_wanted_count(count):
    rng = Random(count)
    for _ in range(200):
        text, letter = word_with_count(rng, count)
        assert text.count(letter) == count
        assert len(text) >= 3


def test_counts_are_balanced():
    rng = Random(4)
    seen = [int(re.search(r"appears (\d)", SKILLS["occurrences"](rng).answer).group(1)) for _ in range(900)]
    assert all(seen.count(n) > 140 for n in range(4))


def test_json_answers_match_their_question():
    rng = Random(6)
    for _ in range(100):
        item = SKILLS["json"](rng)
        answer = json.loads(item.answer)
        if "schema" in item.user:
            schema = json.JSONDecoder().raw_decode(item.user[item.user.index("{") :])[0]
            assert list(answer) == schema["required"]
