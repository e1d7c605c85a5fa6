"""Questions that need one of the offered tools: the call, the tool's result and the answer made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from models.pocket.words import CITIES, NAMES, word


@dataclass(frozen=True)
class ToolRound:
    """One question, the arguments of the right call, what the tool returns and the final answer."""

    user: str
    name: str
    arguments: dict[str, str | int]
    result: str
    answer: str


def _tool(name: str, about: str, parameters: dict[str, tuple[str, str]]) -> dict[str, object]:
    properties = {k: {"type": t, "description": d} for k, (t, d) in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


TOOLS: dict[str, dict[str, object]] = {
    "get_weather": _tool("get_weather", "Current weather of a city", {"city": ("string", "Name of the city")}),
    "get_time": _tool("get_time", "Local time of a city", {"city": ("string", "Name of the city")}),
    "find_phone": _tool("find_phone", "Phone number of a person", {"name": ("string", "Name of the person")}),
    "order_status": _tool("order_status", "Status of an order", {"order": ("integer", "Number of the order")}),
    "set_timer": _tool("set_timer", "Start a timer", {"minutes": ("integer", "Length in minutes")}),
    "get_price": _tool("get_price", "Price of an item", {"item": ("string", "Name of the item"),
                                                         "count": ("integer", "How many")}),
}  # fmt: skip


def _weather(rng: Random) -> ToolRound:
    city, t = rng.choice(CITIES), rng.randint(-9, 38)
    sky = rng.choice(["sunny", "cloudy", "rainy", "windy", "foggy"])
    shapes = [f"What is the weather in {city}?", f"How is the weather in {city}?",
              f"Tell me the weather in {city}.", f"Weather in {city}?", f"How warm is it in {city}?",
              f"What is the weather like in {city}?", f"Is it warm in {city}?"]  # fmt: skip
    result = json.dumps({"temperature": t, "sky": sky})
    return ToolRound(rng.choice(shapes), "get_weather", {"city": city}, result,
                     f"It is {t} degrees and {sky} in {city}.")  # fmt: skip


def _time(rng: Random) -> ToolRound:
    city, clock = rng.choice(CITIES), f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    shapes = [f"What time is it in {city}?", f"Tell me the time in {city}.", f"Time in {city}?",
              f"How late is it in {city}?", f"What is the local time in {city}?"]  # fmt: skip
    return ToolRound(rng.choice(shapes), "get_time", {"city": city}, json.dumps({"time": clock}),
                     f"It is {clock} in {city}.")  # fmt: skip


def _phone(rng: Random) -> ToolRound:
    name, number = rng.choice(NAMES), str(rng.randint(10000, 999999))
    shapes = [f"What is the phone number of {name}?", f"Find the phone number of {name}.",
              f"How can I call {name}?", f"I need the number of {name}."]  # fmt: skip
    return ToolRound(rng.choice(shapes), "find_phone", {"name": name}, json.dumps({"phone": number}),
                     f"The number of {name} is {number}.")  # fmt: skip


def _order(rng: Random) -> ToolRound:
    order = rng.randint(10, 9999)
    state = rng.choice(["shipped", "delivered", "waiting", "cancelled", "packed"])
    shapes = [f"Where is order {order}?", f"What is the status of order {order}?",
              f"Check order {order}.", f"Is order {order} on its way?"]  # fmt: skip
    return ToolRound(rng.choice(shapes), "order_status", {"order": order}, json.dumps({"status": state}),
                     f"Order {order} is {state}.")  # fmt: skip


def _timer(rng: Random) -> ToolRound:
    n, ident = rng.randint(2, 120), rng.randint(1, 99)
    shapes = [f"Set a timer for {n} minutes.", f"Start a timer of {n} minutes.",
              f"Wake me in {n} minutes.", f"Timer, {n} minutes please."]  # fmt: skip
    return ToolRound(rng.choice(shapes), "set_timer", {"minutes": n}, json.dumps({"timer": ident}),
                     f"Timer {ident} is set to {n} minutes.")  # fmt: skip


def _price(rng: Random) -> ToolRound:
    item, n, cost = word(rng, 0.1), rng.randint(1, 20), rng.randint(2, 999)
    shapes = [f"What do {n} {item} cost?", f"What is the price of {n} {item}?",
              f"How much are {n} {item}?", f"Tell me the price of {n} {item}."]  # fmt: skip
    return ToolRound(rng.choice(shapes), "get_price", {"item": item, "count": n},
                     json.dumps({"price": cost}), f"{n} {item} cost {cost} euros.")  # fmt: skip


ROUNDS: dict[str, Callable[[Random], ToolRound]] = {
    "get_weather": _weather,
    "get_time": _time,
    "find_phone": _phone,
    "order_status": _order,
    "set_timer": _timer,
    "get_price": _price,
}
