"""Tells a template's own control strings from those that somebody wrote into a message.

A rendered conversation is one string, and `<|im_start|>` looks the same in it wherever it came from. Two ways to know:

1. **Marks in the template.** In the template's syntax tree, every control string in a constant that flows to the output is put
   between two marks. Rendered with and without marks, the two texts differ by the marks alone, and what stands between
   marks is the template's. Constants that are compared with, split by or passed on stay as they are, so that logic is not disturbed.
2. **Marks in the messages.** Where the first way does disturb the template's logic, or the template puts control strings
   together from pieces, a mark goes into every text of the conversation behind each character that can begin a control
   string. What then still spells one is the template's.

Marks are Unicode noncharacters, picked so that no text of the conversation has them. Everything here is pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes

from .text_errors import MessagesInvalid

NONCHARACTERS = tuple(
    map(chr, [*range(0xFDD0, 0xFDF0), *(plane << 16 | low for plane in range(17) for low in (0xFFFE, 0xFFFF))])
)
"""The 66 code points that Unicode promises never to assign."""

MARKED_NAME = "control_marked_{}"
"""Name under which a marked template sees a named token (`eos_token`, ...) where it prints it."""

_TEXT_METHODS = frozenset(
    {"format", "join", "strip", "lstrip", "rstrip", "replace", "title", "removeprefix", "removesuffix"}
)


@dataclass(frozen=True, slots=True)
class Marks:
    """The pair that frames a control string."""

    begin: str
    end: str

    def frame(self, text: str, controls: re.Pattern[str]) -> str:
        """`text` with every control string framed."""
        return controls.sub(lambda match: f"{self.begin}{match[0]}{self.end}", text)

    def strip(self, text: str) -> str:
        """`text` without marks."""
        return text.replace(self.begin, "").replace(self.end, "")

    def split(self, text: str, controls: re.Pattern[str]) -> list[str] | None:
        """[text, control, text, control, ..., text], or None if a mark stands without its control string."""
        parts = re.split(f"{self.begin}({controls.pattern}){self.end}", text)
        loose = any(self.begin in part or self.end in part for part in parts[::2])
        return None if loose else parts


def pick_marks(texts: Iterable[str]) -> Marks:
    """Two noncharacters that none of the texts has. Raises MessagesInvalid if they use (nearly) all of them."""
    joined = " ".join(texts)
    free = [character for character in NONCHARACTERS if character not in joined][:2]
    if len(free) < 2:
        raise MessagesInvalid("the conversation uses every noncharacter of Unicode", "messages")
    return Marks(*free)


def texts_of(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts_of(key)
            yield from texts_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)


def mark_texts(value: Any, first_letters: re.Pattern[str], mark: str) -> Any:
    """A copy of a JSON value with `mark` behind every first letter of a control string (second way)."""
    if isinstance(value, str):
        return first_letters.sub(lambda match: match[0] + mark, value)
    if isinstance(value, dict):
        return {
            mark_texts(key, first_letters, mark): mark_texts(item, first_letters, mark) for key, item in value.items()
        }
    if isinstance(value, list):
        return [mark_texts(item, first_letters, mark) for item in value]
    return value


def mark_template(
    tree: nodes.Template, controls: re.Pattern[str], marks: Marks, named_tokens: Iterable[str]
) -> nodes.Template:
    """Frame the control strings that this template prints (first way). Changes and returns `tree`."""
    _TemplateMarker(tree, controls, marks, frozenset(named_tokens)).mark(tree)
    return tree


class _TemplateMarker:
    """Walks statements; `_flow` follows an expression's value to where it came from and returns it marked."""

    def __init__(
        self, tree: nodes.Template, controls: re.Pattern[str], marks: Marks, named_tokens: frozenset[str]
    ) -> None:
        self._controls = controls
        self._marks = marks
        self._macros = {macro.name for macro in tree.find_all(nodes.Macro)}
        stored: list[str] = [name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"]
        self._named_tokens = named_tokens - set(stored)
        # `{% set think = '<think>' %}` at the top: marked where it is printed, untouched where it is compared.
        self._constants: dict[str, str] = {
            node.target.name: node.node.value
            for node in tree.body
            if isinstance(node, nodes.Assign)
            and isinstance(node.target, nodes.Name)
            and isinstance(node.node, nodes.Const)
            and isinstance(node.node.value, str)
            and stored.count(node.target.name) == 1
        }

    def mark(self, node: nodes.Node) -> None:
        """Everything below `node` that prints or keeps a value."""
        if isinstance(node, nodes.Output):
            node.nodes = [self._flow(child) for child in node.nodes]
            return
        if isinstance(node, nodes.Assign):
            is_constant = isinstance(node.target, nodes.Name) and node.target.name in self._constants
            if not is_constant:
                node.node = self._flow(node.node)
            return
        if isinstance(node, nodes.With):
            node.values = [self._flow(value) for value in node.values]
        elif isinstance(node, nodes.For):
            node.iter = self._flow(node.iter)
        elif isinstance(node, (nodes.Macro, nodes.CallBlock)):
            node.defaults = [self._flow(value) for value in node.defaults]
        for child in node.iter_child_nodes():
            if isinstance(child, nodes.Stmt):
                self.mark(child)

    def _flow(self, node: nodes.Node) -> Any:
        match node:
            case nodes.TemplateData():
                node.data = self._marks.frame(node.data, self._controls)
            case nodes.Const(value=str() as text):
                return nodes.Const(
                    self._marks.frame(text, self._controls), lineno=node.lineno, environment=node.environment
                )
            case nodes.Name(name=name) if name in self._constants:
                return nodes.Const(
                    self._marks.frame(self._constants[name], self._controls),
                    lineno=node.lineno,
                    environment=node.environment,
                )
            case nodes.Name(name=name) if name in self._named_tokens:
                return nodes.Name(MARKED_NAME.format(name), "load", lineno=node.lineno, environment=node.environment)
            case nodes.Add() | nodes.Mul() | nodes.Or() | nodes.And():
                node.left, node.right = self._flow(node.left), self._flow(node.right)
            case nodes.Mod():
                node.left = self._flow(node.left)
            case nodes.Concat():
                node.nodes = [self._flow(child) for child in node.nodes]
            case nodes.List() | nodes.Tuple():
                node.items = [self._flow(child) for child in node.items]
            case nodes.Dict():
                for pair in node.items:
                    pair.value = self._flow(pair.value)
            case nodes.CondExpr():
                node.expr1 = self._flow(node.expr1)
                node.expr2 = None if node.expr2 is None else self._flow(node.expr2)
            case nodes.Filter():
                if node.node is not None:
                    node.node = self._flow(node.node)
                if node.name in ("default", "d", "join"):
                    node.args = [self._flow(child) for child in node.args]
            case nodes.Getitem():
                node.node = self._flow(node.node)
            case nodes.Call():
                self._flow_call(node)
        return node

    def _flow_call(self, node: nodes.Call) -> None:
        match node.node:
            case nodes.Getattr(attr=attr) if attr in _TEXT_METHODS:
                node.node.node = self._flow(node.node.node)
                if attr == "replace" and len(node.args) == 2:
                    node.args[1] = self._flow(node.args[1])
                elif attr in ("format", "join"):
                    node.args = [self._flow(child) for child in node.args]
            case nodes.Name(name=name) if name in self._macros or name in ("namespace", "dict"):
                node.args = [self._flow(child) for child in node.args]
                for keyword in node.kwargs:
                    keyword.value = self._flow(keyword.value)
