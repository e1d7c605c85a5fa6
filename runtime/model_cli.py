"""`shoal model score`, `synth` and `show`: what one can do with a checkpoint without serving it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .checkpoint import find_tensors, open_checkpoint
from .command_output import faults_as_lines, percent_line
from .config import load_generation_defaults, load_model_config
from .container import is_converted, open_container
from .json_file import read_json_object
from .model_dirs import ModelNotFound, resolve_model
from .model_facts import checkpoint_facts, container_facts, published_facts, render_facts
from .options_cli import engine_options, take_engine_options
from .sizes import SIZES
from .thread_waiting import wait_passively

__all__ = ["score", "show", "synth"]


def _splits(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int]:
    if value is None:
        return []
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise click.BadParameter(f"{value!r} is not a list of token counts such as 63,64", ctx, param)
    return [int(part) for part in parts]


@click.command()
@click.argument("model", metavar="NAME|DIR")
@click.option(
    "--ids",
    "ids_path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="F.json",
    help="A JSON list of token ids.",
)
@click.option("--split", "splits", callback=_splits, metavar="N,N", help="Cut the ids after so many tokens.")
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="O.safetensors",
    help="Where logits and states go.",
)
@engine_options
def score(model: str, ids_path: Path, splits: list[int], out: Path, **values: Any) -> None:
    """Write the logits at every id, and the cache after the last one, as safetensors."""
    options = take_engine_options(values)
    with faults_as_lines():
        directory = resolve_model(model)
        # Here and not above: `--help` and wrong options must not wait for numpy or torch.
        wait_passively()
        from .score import score_directory

        num_tokens = score_directory(directory, ids_path, out, options, splits)
    click.echo(f"{num_tokens} tokens scored: {out}", err=True)


@click.command()
@click.option("--size", metavar="NAME", help=f"A published size: {', '.join(SIZES)}.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="F.json",
    help="The sizes, as a config.json.",
)
@click.option("--layers", type=click.IntRange(1, 1024), metavar="N", help="So many trunk layers instead.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of the values.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["bf16", "int8", "int4"]),
    default="bf16",
    show_default=True,
    help="bf16: as published; int8, int4: converted.",
)
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="A new directory."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a line.")
def synth(
    size: str | None,
    config_path: Path | None,
    layers: int | None,
    seed: int,
    format_: str,
    out: Path,
    as_json: bool,
) -> None:
    """Write a random checkpoint in the published layout, with a byte-level tokenizer."""
    if (size is None) == (config_path is None):
        raise click.UsageError("give one of --size and --config")
    with faults_as_lines():
        from .synth import synthesise, synthesise_size

        progress = percent_line("writing") if not as_json else None
        if size is not None:
            summary = synthesise_size(size, out, seed=seed, layers=layers, format=format_, progress=progress)
        else:
            assert config_path is not None
            summary = synthesise(
                read_json_object(config_path), out, seed=seed, layers=layers, format=format_, progress=progress
            )
    facts = {
        "directory": str(summary.directory),
        "num_tensors": summary.num_tensors,
        "num_parameters": summary.num_parameters,
        "num_bytes": summary.num_bytes,
        "num_files": summary.num_files,
    }
    click.echo(
        json.dumps(facts)
        if as_json
        else f"{out}: {summary.num_tensors} tensors, {summary.num_parameters:,} parameters, {summary.num_bytes:,} bytes"
    )


@click.command()
@click.argument("model", metavar="NAME|DIR")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(model: str, as_json: bool) -> None:
    """Sizes, parameters, bytes and tensors of a checkpoint. Reads headers only; every complaint names its tensor."""
    with faults_as_lines():
        try:
            directory = resolve_model(model)
        except ModelNotFound:
            facts = published_facts(model)
            if facts is None:
                raise
        else:
            config = load_model_config(directory)
            defaults = load_generation_defaults(directory, config)
            if is_converted(directory):
                facts = container_facts(directory, config, open_container(directory), defaults)
            else:
                checkpoint = open_checkpoint(directory, config)
                all_tensors, _ = find_tensors(directory)
                facts = checkpoint_facts(directory, config, checkpoint, all_tensors, defaults)
    click.echo(json.dumps(facts, ensure_ascii=False) if as_json else render_facts(facts))
