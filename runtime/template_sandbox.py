"""Jinja as chat templates expect it, fenced in: no attribute tricks, bounded repetition, bounded output, bounded time.

The environment is the one that checkpoints are published for: blocks trimmed, `break` and `continue`, a `tojson` that keeps
non-ASCII text and key order, `raise_exception`, `strftime_now`, and `generation` blocks, which only frame text here.

The time is looked at with every loop's turn and every macro's call. What a single filter does with one long text is not bounded: a
template comes with the checkpoint that the operator chose.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .text_errors import TemplateFailed

MAX_RENDERED_CHARS = 16 * 1024 * 1024
"""Twice the largest request body: no sane template doubles what it is given."""

MAX_RENDER_S = 10.0
"""A long conversation renders in milliseconds."""

MAX_POWER_BITS = 4096
"""Size of a whole number that `**` may make."""


_TICK = "render_tick"
"""What loops and macros call; a name that no template has reason to use."""


class _GenerationExtension(Extension):
    """`{% generation %}` marks the assistant's words for training; for a prompt its body is all that counts."""

    tags = {"generation"}  # noqa: RUF012 - declared so by the base class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """Refuses the two operators that make much out of little."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                too_long = (
                    isinstance(times, int) and hasattr(value, "__len__") and len(value) * times > MAX_RENDERED_CHARS
                )
                if too_long:
                    raise jinja2.TemplateRuntimeError("a repeated text is too long")
        elif isinstance(left, int) and isinstance(right, int) and abs(right) * left.bit_length() > MAX_POWER_BITS:
            raise jinja2.TemplateRuntimeError("a power is too large")
        return super().call_binop(context, operator, left, right)


class _Dict:
    """`dict` as templates may use it, without the type behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object = "") -> None:
    raise jinja2.TemplateError(str(message))


def make_environment() -> jinja2.Environment:
    """A fresh environment; what is compiled in it may run in several threads."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationExtension, LoopControlExtension]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["dict"] = _Dict()
    return environment


def clock_at(now: datetime) -> Any:
    """`strftime_now` for one conversation: every run over it sees the same instant."""

    def strftime_now(form: str) -> str:
        return now.strftime(form)

    return strftime_now


def compile_template(environment: jinja2.Environment, tree: nodes.Template) -> jinja2.Template:
    """A parsed template, ready to run in bounded time. Changes `tree`. Raises jinja2.TemplateError."""
    bodies = [loop.body for loop in tree.find_all(nodes.For)]
    bodies += [macro.body for macro in tree.find_all(nodes.Macro)]
    bodies += [block.body for block in tree.find_all(nodes.CallBlock)]
    for body in bodies:
        call = nodes.Call(nodes.Name(_TICK, "load"), [], [], None, None)
        body.insert(0, nodes.Output([call], lineno=1))
    tree.set_environment(environment)
    code = environment.compile(tree)
    return environment.template_class.from_code(environment, code, environment.make_globals(None))


def run_template(
    template: jinja2.Template, variables: Mapping[str, Any], clock: Callable[[], float] = time.monotonic
) -> str:
    """The text of a template made by `compile_template`. `clock` tells seconds.

    Raises TemplateFailed for whatever goes wrong inside, and beyond the two limits.
    """
    end = clock() + MAX_RENDER_S

    def tick() -> str:
        if clock() > end:
            raise TemplateFailed(f"the chat template took more than {MAX_RENDER_S:g} s")
        return ""

    pieces: list[str] = []
    num_chars = 0
    try:
        for piece in template.generate({**variables, _TICK: tick}):
            pieces.append(piece)
            num_chars += len(piece)
            if num_chars > MAX_RENDERED_CHARS:
                raise TemplateFailed(f"the rendered conversation is longer than {MAX_RENDERED_CHARS:,} characters")
    except TemplateFailed:
        raise
    except jinja2.TemplateError as error:
        raise TemplateFailed(f"the chat template refused the conversation: {error.message or error}") from error
    except Exception as error:  # a template is a program: it can raise anything that Python can
        # A TypeError speaks of types; what others say may be the conversation's own words.
        reason = f"{type(error).__name__}: {error}" if isinstance(error, TypeError) else type(error).__name__
        raise TemplateFailed(f"the chat template failed on the conversation: {reason}"[:1000]) from error
    return "".join(pieces)
