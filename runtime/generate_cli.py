"""`shoal generate`: one answer on this machine, by the same engine that a fleet runs, in this process."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec

from .errors import RuntimeFault
from .generate_result import AnswerCollector
from .model_dirs import resolve_model
from .options_cli import (
    SAMPLING_OPTION_NAMES,
    engine_options,
    sampling_options,
    take_engine_options,
)
from .thread_waiting import wait_passively
from .wire import Conversation, DeltaKind, IdsPrompt, Output, Prompt, Request, Sampling, TextPrompt

MAX_IDS_FILE_BYTES = 64 * 1024 * 1024


@click.command()
@click.argument("model", metavar="NAME|DIR")
@click.option("--prompt", metavar="TEXT", help="Text to go on with; control strings in it are parsed.")
@click.option("--chat", metavar="TEXT", help="A user's message, put through the model's chat template.")
@click.option(
    "--ids",
    "ids_file",
    metavar="F.json",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A JSON list of token ids to go on with.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Length of the answer.  [default: what the context holds]",
)
@click.option(
    "--min-tokens", type=click.IntRange(min=0), default=0, metavar="N", help="The answer does not end before."
)
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable.")
@click.option("--ignore-eos", is_flag=True, help="Go on where the model would end.")
@click.option(
    "--logprobs", type=click.IntRange(0, 20), metavar="N", help="With --json: logprobs, and N alternatives a token."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end instead of text as it comes.")
@sampling_options
@engine_options
def generate(
    model: str,
    prompt: str | None,
    chat: str | None,
    ids_file: Path | None,
    max_tokens: int | None,
    min_tokens: int,
    stop: tuple[str, ...],
    ignore_eos: bool,
    logprobs: int | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Answer one prompt on this machine, without a fleet.

    Give one of --prompt, --chat and --ids. Text goes to stdout as it is drawn, reasoning to stderr; with --json one object follows at the end.
    """
    if (prompt is not None) + (chat is not None) + (ids_file is not None) != 1:
        raise click.UsageError("give one of --prompt, --chat and --ids")
    # One sequence: pools for more would only be filled with zeros.
    options = replace(take_engine_options(values), parallel=1)
    sampling = Sampling(**{name: values[name] for name in SAMPLING_OPTION_NAMES})
    request = Request(
        request_id="generate",
        prompt=_prompt(prompt, chat, ids_file),
        sampling=sampling,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop=list(stop),
        ignore_eos=ignore_eos,
        logprobs=logprobs,
    )
    collector = AnswerCollector()
    try:
        directory = resolve_model(model)
        # Here and not above: `--help` and wrong options must not wait for numpy, nor for torch where the reference back end runs.
        wait_passively()
        from .loading import Reads, load_engine

        reads = Reads.IDS if ids_file is not None else Reads.TEXT if chat is None else Reads.CONVERSATIONS
        engine = load_engine(directory, options, announce=_announce, reads=reads).engine
        engine.add(request)
        while engine.has_work:
            for output in engine.step():
                collector.add(output)
                if not as_json:
                    _show(output)
    except RuntimeFault as fault:
        raise click.ClickException(str(fault)) from fault
    if collector.error is not None:
        raise click.ClickException(collector.error.message)
    if as_json:
        click.echo(json.dumps(collector.result(), ensure_ascii=False))
    else:
        click.echo()


def _prompt(text: str | None, chat: str | None, ids_file: Path | None) -> Prompt:
    if text is not None:
        return TextPrompt(text=text)
    if chat is not None:
        return Conversation(messages=msgspec.json.encode([{"role": "user", "content": chat}]))
    assert ids_file is not None
    try:
        if ids_file.stat().st_size > MAX_IDS_FILE_BYTES:
            raise click.ClickException(f"{ids_file} is larger than {MAX_IDS_FILE_BYTES:,} bytes")
        return IdsPrompt(token_ids=msgspec.json.decode(ids_file.read_bytes(), type=list[int]))
    except OSError as error:
        raise click.ClickException(f"{ids_file} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise click.ClickException(f"{ids_file} is not a JSON list of token ids: {error}") from error


def _announce(line: str) -> None:
    """What loading is about, only where a person watches."""
    if sys.stderr.isatty():
        click.echo(line, err=True)


def _show(output: Output) -> None:
    """The answer to stdout; reasoning to stderr, so that a pipe gets the answer alone."""
    for delta in output.deltas:
        stream = sys.stderr if delta.kind is DeltaKind.REASONING else sys.stdout
        if delta.kind is DeltaKind.TOOL_CALL_START:
            stream.write(f"\n[calls {delta.name}] ")
        stream.write(delta.text)
        stream.flush()
