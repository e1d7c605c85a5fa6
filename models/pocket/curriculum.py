"""Conversations drawn from a seed: what pocket is trained on and what it is measured on.

A prompt is held out exactly when the SHA-256 of the last user message, read as an integer, is divisible
by ten.  No user message of a training conversation is held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from models.pocket.skills import SKILLS, Item, subtraction
from models.pocket.tool_talk import ROUNDS, TOOLS, ToolRound
from models.pocket.words import CITIES, NAMES, word

Message = dict[str, Any]
SYSTEMS = [
    "You are a helpful assistant.", "You are pocket.", "Answer briefly.", "Be polite.",
    "You are a helpful assistant. Answer briefly.", "You are pocket, a small model.", "Be concise.",
]  # fmt: skip


@dataclass
class Conversation:
    """Messages in the OpenAI form; ``skill`` names what the last turn asks for."""

    messages: list[Message]
    skill: str
    thinking: bool = False
    tools: list[dict[str, object]] = field(default_factory=list)


def held_out(user: str) -> bool:
    """Whether this last user message belongs to the measurement and must never be trained on."""
    return int(hashlib.sha256(user.encode()).hexdigest(), 16) % 10 == 0


def last_user(conversation: Conversation) -> str:
    """The text that decides whether the conversation is held out."""
    return str([m["content"] for m in conversation.messages if m["role"] == "user"][-1])


def draw(make: Callable[[Random], Any], rng: Random, wanted: bool = False) -> Any:
    """Draw until ``.user`` of the result is held out (wanted) or is not."""
    while True:
        item = make(rng)
        if held_out(item.user) == wanted:
            return item


def _answer(item: Item, thinking: bool) -> Message:
    m: Message = {"role": "assistant", "content": item.answer}
    if thinking:
        m["reasoning_content"] = item.thought
    return m


def _system(rng: Random) -> list[Message]:
    return [{"role": "system", "content": rng.choice(SYSTEMS)}] if rng.random() < 0.15 else []


def _weighted(rng: Random, weights: dict[str, float]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


CHAT_WEIGHTS = {"add": 20.0, "sub": 20.0, "sort": 18.0, "reverse": 11.0, "occurrences": 11.0, "length": 7.0,
                "greet": 5.0, "copy": 5.0, "json": 6.0, "unknown": 3.0}  # fmt: skip
LETTERS = {"reverse", "length", "occurrences"}


def _thinks(rng: Random, skill: str, sums: float) -> bool:
    share = sums if skill in ("add", "sub") else 0.25 if skill in LETTERS else 0.12
    return rng.random() < share


def chat(
    rng: Random,
    weights: dict[str, float],
    turns: int,
    last: str = "",
    wanted: bool = False,
    sums_thinking: float = 0.5,
    makers: Mapping[str, Callable[[Random], Item]] = SKILLS,
) -> Conversation:
    """A conversation of single questions; only the last turn may think, as the template writes it."""
    messages = _system(rng)
    for _ in range(turns - 1):
        item = draw(makers[_weighted(rng, weights)], rng)
        messages += [{"role": "user", "content": item.user}, _answer(item, False)]
    skill = last.removesuffix("_think") or _weighted(rng, weights)
    thinking = last.endswith("_think") if last else _thinks(rng, skill, sums_thinking)
    item = draw(makers[skill], rng, wanted)
    messages += [{"role": "user", "content": item.user}, _answer(item, thinking)]
    return Conversation(messages, skill + "_think" * thinking, thinking)


def _call_messages(r: ToolRound, thinking: bool, number: int) -> list[Message]:
    call = {"id": f"call_{number}", "type": "function",
            "function": {"name": r.name, "arguments": r.arguments}}  # fmt: skip
    first: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
    last: Message = {"role": "assistant", "content": r.answer}
    if thinking:
        first["reasoning_content"] = f"I need the tool {r.name}."
        last["reasoning_content"] = "The tool has answered."
    return [first, {"role": "tool", "tool_call_id": f"call_{number}", "content": r.result}, last]


def tool_conversation(
    rng: Random, rounds: int, wanted: bool = False, plain: float = 0.25, skill: str = "tool_use"
) -> Conversation:
    """Two of six tools are offered; a quarter of the rounds ask something that needs none of them."""
    names = rng.sample(sorted(TOOLS), 2)
    messages = _system(rng)
    thinking = rng.random() < 0.12
    for i in range(rounds):
        is_last = i == rounds - 1
        if rng.random() < (0.0 if wanted and is_last else plain):
            item = draw(SKILLS[_weighted(rng, CHAT_WEIGHTS)], rng)
            messages += [{"role": "user", "content": item.user}, _answer(item, thinking and is_last)]
            continue
        r = draw(ROUNDS[rng.choice(names)], rng, wanted and is_last)
        messages.append({"role": "user", "content": r.user})
        messages += _call_messages(r, thinking and is_last, i)
    return Conversation(messages, skill, thinking, [TOOLS[n] for n in names])


_FACTS: dict[str, Callable[[Random], str]] = {
    "pin": lambda r: str(r.randint(1000, 9999)),
    "locker number": lambda r: str(r.randint(10, 999)),
    "favorite word": lambda r: word(r, 0.1),
    "password": lambda r: word(r, 0.1) + str(r.randint(0, 99)),
    "best friend": lambda r: r.choice(NAMES),
    "home town": lambda r: r.choice(CITIES),
    "teacher": lambda r: r.choice(NAMES),
    "dream city": lambda r: r.choice(CITIES),
    "code word": lambda r: word(r, 0.1),
    "room number": lambda r: str(r.randint(1, 999)),
}


@dataclass(frozen=True)
class _Fact:
    user: str
    kind: str
    value: str


def _fact(rng: Random, kind: str) -> _Fact:
    value = _FACTS[kind](rng)
    shapes = [f"My {kind} is {value}.", f"Remember that my {kind} is {value}.", f"Note: my {kind} is {value}.",
              f"Please remember: my {kind} is {value}.", f"Hi, my {kind} is {value}."]  # fmt: skip
    return _Fact(rng.choice(shapes), kind, value)


def _recall(rng: Random, kind: str) -> Item:
    opener = rng.choice(["", "", "", "Hey, ", "Hello, ", "Now, ", "Please, ", "Tell me, ", "Last question: ", "So, "])
    shapes = [f"what was my {kind}?", f"what is my {kind}?", f"do you remember my {kind}?",
              f"which {kind} did I tell you?", f"tell me my {kind}.", f"repeat my {kind}.",
              f"I forgot my {kind}. What is it?", f"can you tell me my {kind}?"]  # fmt: skip
    text = opener + rng.choice(shapes)
    if not opener or opener.endswith(": "):
        text = opener + text[len(opener)].upper() + text[len(opener) + 1 :]
    return Item(text, "", f"The user told me the {kind}.")


def memory(
    rng: Random, distance: int, count: Callable[[list[Message]], int], wanted: bool = False, skill: str = "memory"
) -> Conversation:
    """A fact (or two), at least ``distance`` tokens of other turns, then the question for it.

    ``count`` gives the number of tokens of a list of messages.
    """
    kinds = rng.sample(sorted(_FACTS), 2)
    messages = _system(rng)
    facts = []
    for kind in kinds[: rng.choice([1, 1, 2])]:
        fact = draw(partial(_fact, kind=kind), rng)
        facts.append(fact)
        messages += [{"role": "user", "content": fact.user},
                     {"role": "assistant", "content": f"I will remember that your {kind} is {fact.value}."}]  # fmt: skip
    between: list[Message] = []
    while count(between) < distance:
        item = draw(SKILLS[_weighted(rng, CHAT_WEIGHTS)], rng)
        between += [{"role": "user", "content": item.user}, _answer(item, False)]
    fact = rng.choice(facts)
    question = draw(partial(_recall, kind=fact.kind), rng, wanted)
    thinking = rng.random() < 0.12
    item = Item(question.user, f"Your {fact.kind} is {fact.value}.", question.thought)
    messages += [*between, {"role": "user", "content": item.user}, _answer(item, thinking)]
    return Conversation(messages, skill, thinking)


@dataclass(frozen=True)
class Mix:
    """Shares of the kinds of conversation (``sums``: short ones of sums alone) and weights inside them."""

    chat: float = 0.72
    tool: float = 0.14
    memory: float = 0.14
    sums: float = 0.0
    turns: int = 6
    weights: tuple[tuple[str, float], ...] = tuple(CHAT_WEIGHTS.items())
    subtraction: float = 1.0  # against 1 for the addition, in conversations of sums
    sums_thinking: float = 0.5  # share of sums in the last turn that are thought through
    negative: float | None = None  # share of differences below zero, in conversations of sums


def training_conversation(rng: Random, mix: Mix, count: Callable[[list[Message]], int]) -> Conversation:
    """One conversation of the mix; refuses to return one with a held-out user message."""
    u = rng.random() * (mix.chat + mix.tool + mix.memory + mix.sums)
    if u < mix.sums:
        shares = {"add": 1.0, "sub": mix.subtraction}
        makers = {**SKILLS, "sub": partial(subtraction, negative=mix.negative)}
        c = chat(rng, shares, rng.choice([1, 1, 2, 3]), sums_thinking=mix.sums_thinking, makers=makers)
    elif u < mix.sums + mix.tool:
        c = tool_conversation(rng, rng.choice([1, 1, 2, 3]))
    elif u < mix.sums + mix.tool + mix.memory:
        c = memory(rng, rng.choice([0, rng.randint(0, 500), rng.randint(0, 1150)]), count)
    else:
        c = chat(rng, dict(mix.weights), rng.randint(1, mix.turns), sums_thinking=mix.sums_thinking)
    for m in c.messages:
        if m["role"] == "user" and held_out(m["content"]):
            raise AssertionError("a held-out prompt reached the training data")
    return c


THINKING = ["add_think", "sub_think", "reverse_think", "length_think", "occurrences_think"]
MEASURED = [*SKILLS, *THINKING, "tool_use", "memory", "memory_1000"]


def measured_conversation(rng: Random, skill: str, count: Callable[[list[Message]], int]) -> Conversation:
    """A conversation whose last user message is held out."""
    if skill == "tool_use":
        return tool_conversation(rng, 1, wanted=True, skill=skill)
    if skill == "memory":
        return memory(rng, rng.randint(0, 100), count, wanted=True, skill=skill)
    if skill == "memory_1000":
        return memory(rng, 1000, count, wanted=True, skill=skill)
    return chat(rng, {}, 1, last=skill, wanted=True)
