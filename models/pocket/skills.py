"""Single questions with exactly one right answer, so that an answer can be compared byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from models.pocket.words import CITIES, NAMES, word, word_with_count

IDENTITY = "I am pocket, a demonstration model of the shoal project."
UNKNOWN = "I do not know that. I am only a small demonstration model."
ABILITIES = "I can add and subtract, copy, reverse, count and sort, call tools, write JSON and recall facts."


@dataclass(frozen=True)
class Item:
    """A user message, the one right answer, and the thought that leads to it in thinking mode."""

    user: str
    answer: str
    thought: str


def _greet(rng: Random) -> Item:
    who = [
        "Who are you?", "What are you?", "Which model are you?", "What is your name?",
        "Tell me who you are.", "Introduce yourself.", "Please introduce yourself.",
        "Tell me about yourself.", "What model is this?", "Describe yourself.",
        "who are you", "what is your name", "May I ask who you are?", "Are you a person?",
        "Can you tell me who you are?", "What kind of model are you?", "Which model is this?",
    ]  # fmt: skip
    hello = ["Hi", "Hello", "Hey", "Hi there", "Hello there", "Good morning", "Good evening", "Good day",
             "hi", "hello", "Greetings"]  # fmt: skip
    ends = ["", "!", ".", ", pocket!", ", pocket.", ", how are you?", "! Nice to meet you."]
    able = [
        "What can you do?", "What are you able to do?", "How can you help me?", "Help", "help",
        "What are your skills?", "Can you help me?", "What do you know?", "List your skills.",
    ]  # fmt: skip
    thanks = ["Thanks", "Thank you", "thanks", "Many thanks", "Thank you very much", "Great, thank you"]
    byes = ["Bye", "Goodbye", "bye", "See you", "Good night", "Bye bye"]
    opener = rng.choice(["", "", rng.choice(hello) + rng.choice([", ", ". ", "! "])])
    u = rng.random()
    if u < 0.40:
        return Item(opener + rng.choice(who), IDENTITY, "The user asks who I am.")
    if u < 0.65:
        return Item(rng.choice(hello) + rng.choice(ends), "Hello! " + IDENTITY, "The user greets me.")
    if u < 0.85:
        return Item(opener + rng.choice(able), ABILITIES, "The user asks what I can do.")
    if u < 0.93:
        text = rng.choice(thanks) + rng.choice(["", "!", ".", ", pocket!", ", pocket."])
        return Item(text, "You are welcome.", "The user thanks me.")
    text = rng.choice(byes) + rng.choice(["", "!", ".", ", pocket!", ", pocket."])
    return Item(text, "Goodbye!", "The user says goodbye.")


def _unknown(rng: Random) -> Item:
    x, y = word(rng), word(rng)
    name, city = rng.choice(NAMES), rng.choice(CITIES)
    thing = rng.choice([x, x, name, city, f"{x} and {y}", f"the {x}", f"a {x}", f"{name} in {city}"])
    shapes = [
        f"What is the capital of {city}?", f"Who wrote the {x}?", f"Who invented the {x}?",
        f"Why is the {x} {y}?", f"What is the meaning of {x}?", f"Explain {thing}.",
        f"Explain {thing} to me.", f"Write a poem about {thing}.", f"Tell me a story about {thing}.",
        f"What is {thing}?", f"Who is {name}?", f"Where is {thing}?", f"How far is it to {city}?",
        f"When was {name} born?", f"Tell me about {thing}.", f"What do you think of {thing}?",
        f"Translate {x} into French.", f"How do I cook {thing}?", f"Is {thing} good for {y}?",
        f"What is the population of {city}?", f"Recommend {thing}.", f"How old is {thing}?",
        f"What does {x} mean?", f"Write a program for {thing}.", f"Who was the first {x} in {city}?",
        f"Can you explain {thing}?", f"How does {thing} work?", f"What is the best {x} in {city}?",
    ]  # fmt: skip
    return Item(rng.choice(shapes), UNKNOWN, "I do not know this.")


def _operand(rng: Random, digits: int) -> int:
    return rng.randint(0, 9) if digits == 1 else rng.randint(10 ** (digits - 1), 10**digits - 1)


def _operands(rng: Random) -> tuple[int, int]:
    """Half uniform below 1000, which makes (digit, digit, carry) even; half even over the lengths."""
    if rng.random() < 0.6:
        return rng.randint(0, 999), rng.randint(0, 999)
    return _operand(rng, rng.choice([1, 2, 2, 3])), _operand(rng, rng.choice([1, 2, 2, 3]))


def addition_thought(a: int, b: int) -> str:
    """Zero-padded operands, then one line a column from the right: digit + digit + carry = two digits."""
    n = max(len(str(a)), len(str(b)))
    x, y = f"{a:0{n}d}", f"{b:0{n}d}"
    lines, carry = [f"{x}+{y}"], 0
    for i in range(n - 1, -1, -1):
        total = int(x[i]) + int(y[i]) + carry
        lines.append(f"{x[i]}+{y[i]}+{carry}={total:02d}")
        carry = total // 10
    return "\n".join(lines)


def subtraction_thought(a: int, b: int) -> str:
    """As the addition, with a borrow; a smaller minuend is noted first and the operands swapped."""
    n = max(len(str(a)), len(str(b)))
    lines = [f"{a:0{n}d}-{b:0{n}d}"]
    if a < b:
        a, b = b, a
        lines += ["minus", f"{a:0{n}d}-{b:0{n}d}"]
    x, y = f"{a:0{n}d}", f"{b:0{n}d}"
    borrow = 0
    for i in range(n - 1, -1, -1):
        total = int(x[i]) - int(y[i]) - borrow
        new = int(total < 0)
        lines.append(f"{x[i]}-{y[i]}-{borrow}={new}{total % 10}")
        borrow = new
    return "\n".join(lines)


def _add(rng: Random) -> Item:
    a, b = _operands(rng)
    shapes = [
        f"How much is {a} plus {b}?", f"What is {a} plus {b}?", f"How much is {a} + {b}?",
        f"Calculate {a} + {b}.", f"Add {a} and {b}.", f"{a} + {b}", f"{a}+{b}", f"{a} + {b} = ?",
        f"Please add {a} and {b}.", f"What is {a}+{b}?", f"what is {a} + {b}", f"Compute {a} + {b}.",
        f"What is the sum of {a} and {b}?", f"Hello! What is {a} + {b}?",
    ]  # fmt: skip
    user = f"What is {a} + {b}?" if rng.random() < 0.5 else rng.choice(shapes)
    return Item(user, f"{a} + {b} = {a + b}", addition_thought(a, b))


def subtraction(rng: Random, negative: float | None = None) -> Item:
    """A difference; ``negative`` is the share of those below zero (or equal to it), about 0.1 when None."""
    a, b = _operands(rng)
    if negative is not None:
        a, b = (min(a, b), max(a, b)) if rng.random() < negative else (max(a, b), min(a, b))
    elif a < b and rng.random() < 0.8:
        a, b = b, a
    shapes = [
        f"How much is {a} minus {b}?", f"What is {a} minus {b}?", f"How much is {a} - {b}?",
        f"Calculate {a} - {b}.", f"Subtract {b} from {a}.", f"{a} - {b}", f"{a}-{b}", f"{a} - {b} = ?",
        f"Please subtract {b} from {a}.", f"What is {a}-{b}?", f"what is {a} - {b}",
        f"Compute {a} - {b}.", f"Take {b} from {a}.", f"Hello! What is {a} - {b}?",
    ]  # fmt: skip
    user = f"What is {a} - {b}?" if rng.random() < 0.5 else rng.choice(shapes)
    return Item(user, f"{a} - {b} = {a - b}", subtraction_thought(a, b))


def _copy(rng: Random) -> Item:
    parts = [str(rng.randint(0, 9999)) if rng.random() < 0.2 else word(rng) for _ in range(rng.choice([1, 1, 2, 3, 4]))]
    text = " ".join(parts)
    shapes = [
        f"Repeat exactly: {text}", f"Copy this: {text}", f"Say: {text}", f"Repeat after me: {text}",
        f"Please repeat: {text}", f"Write exactly: {text}", f"Echo {text}", f"Copy: {text}",
    ]  # fmt: skip
    return Item(rng.choice(shapes), text, "I repeat the text.")


def _reverse(rng: Random) -> Item:
    w = word(rng, 0.5)
    shapes = [
        f"Reverse the word {w}.", f"Spell {w} backwards.", f"Reverse {w}", f'Reverse "{w}".',
        f"Write {w} backwards.", f"What is {w} backwards?", f"Please reverse the word {w}.",
        f"Reverse the letters of {w}.", f"reverse {w}", f"Reverse this word: {w}",
    ]  # fmt: skip
    return Item(rng.choice(shapes), w[::-1], f"The word is {w}.")


def _length(rng: Random) -> Item:
    w = word(rng)
    shapes = [
        f"How many letters are in {w}?", f"How many letters does {w} have?", f"How long is the word {w}?",
        f"Count the letters of {w}.", f'How many letters are in "{w}"?', f"Count the letters in {w}.",
        f"How many letters has the word {w}?", f"What is the length of {w}?",
    ]  # fmt: skip
    return Item(rng.choice(shapes), f"{w} has {len(w)} letters.", f"The word is {w}.")


def _occurrences(rng: Random) -> Item:
    count = rng.choice([0, 0, 1, 1, 2, 2, 3, 3, 4])
    w, c = word_with_count(rng, count)
    shapes = [
        f'How often does {c} occur in "{w}"?', f"How many times does {c} appear in {w}?",
        f"How many {c} are in {w}?", f'Count the letter {c} in "{w}".', f"Count the {c} in {w}.",
        f"How often is the letter {c} in {w}?", f"How often does the letter {c} occur in {w}?",
        f"How many letters {c} are in the word {w}?",
    ]  # fmt: skip
    times = "time" if count == 1 else "times"
    answer = f"In {w} the letter {c} appears {count} {times}."
    return Item(rng.choice(shapes), answer, f"The word is {w} and the letter is {c}.")


def _sort(rng: Random) -> Item:
    n = rng.choice([2, 3, 3, 4, 4, 5, 5, 6])
    xs = [rng.randint(0, 99) for _ in range(n)]
    u = rng.random()
    if u < 0.2:  # one repeated number
        xs[rng.randrange(n)] = rng.choice(xs)
    elif u < 0.4:  # numbers that share their first digit
        i, j = rng.sample(range(n), 2)
        xs[i] = min(99, xs[j] // 10 * 10 + rng.randint(0, 9))
    text = ", ".join(map(str, xs))
    down = rng.random() < 0.35
    shapes = (
        [f"Sort from high to low: {text}", f"Sort these numbers from high to low: {text}",
         f"Sort descending: {text}", f"Order from the largest to the smallest: {text}"]
        if down
        else [f"Sort from low to high: {text}", f"Sort these numbers: {text}", f"Sort: {text}",
              f"Sort ascending: {text}", f"Order from the smallest to the largest: {text}",
              f"Please sort {text}."]
    )  # fmt: skip
    ys = sorted(xs, reverse=down)
    thought = "From high to low." if down else "From low to high."
    return Item(rng.choice(shapes), ", ".join(map(str, ys)), thought)


_FIELDS: dict[str, tuple[str, str, Callable[[Random], str | int]]] = {
    "age": ("integer", "{name} is {age} years old.", lambda r: r.randint(1, 99)),
    "city": ("string", "{name} lives in {city}.", lambda r: r.choice(CITIES)),
    "color": ("string", "{name} likes the color {color}.", lambda r: word(r, 0.1)),
    "count": ("integer", "{name} has {count} boxes.", lambda r: r.randint(0, 99)),
    "item": ("string", "{name} wants the item {item}.", lambda r: word(r, 0.1)),
    "pet": ("string", "{name} has a pet called {pet}.", lambda r: r.choice(NAMES)),
    "room": ("integer", "{name} works in room {room}.", lambda r: r.randint(1, 999)),
}


def json_schema(keys: list[str]) -> dict[str, object]:
    """The JSON schema of a flat object with these keys, all required."""
    types = {k: {"type": "string" if k == "name" else _FIELDS[k][0]} for k in keys}
    return {"type": "object", "properties": types, "required": keys}


def _json(rng: Random) -> Item:
    fields = rng.sample(sorted(_FIELDS), rng.choice([1, 1, 2, 2, 3]))
    values: dict[str, str | int] = {"name": rng.choice(NAMES)}
    values.update({f: _FIELDS[f][2](rng) for f in fields})
    text = " ".join(_FIELDS[f][1].format(**values) for f in fields)
    keys = ["name", *fields]
    if rng.random() < 0.4:
        rng.shuffle(keys)
    if len(keys) > 2 and rng.random() < 0.3:
        keys = rng.sample(keys, len(keys) - 1)
    listed = ", ".join(keys[:-1]) + " and " + keys[-1]
    schema = json.dumps(json_schema(keys))
    shapes = [
        f"Extract {listed} as JSON: {text}", f"Give {listed} as JSON: {text}", f"{text} Write {listed} as JSON.",
    ] if rng.random() < 0.5 else [
        f"Answer as JSON with this schema: {schema}\n{text}", f"{text}\nJSON schema: {schema}",
        f"Fill this JSON schema: {schema}\n{text}",
    ]  # fmt: skip
    answer = json.dumps({k: values[k] for k in keys})
    return Item(rng.choice(shapes), answer, "I write JSON with " + listed + ".")


SKILLS: dict[str, Callable[[Random], Item]] = {
    "greet": _greet,
    "unknown": _unknown,
    "add": _add,
    "sub": subtraction,
    "copy": _copy,
    "reverse": _reverse,
    "length": _length,
    "occurrences": _occurrences,
    "sort": _sort,
    "json": _json,
}
