"""`shoal model convert`: a published model into one file that every machine maps."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .command_output import faults_as_lines, percent_line
from .container_tensors import CONTAINER_FORMATS
from .model_dirs import resolve_model

__all__ = ["convert"]


@click.command()
@click.argument("model", metavar="NAME|DIR")
@click.option(
    "--format",
    "format_",
    type=click.Choice(CONTAINER_FORMATS[::-1]),
    default="int4",
    show_default=True,
    help="Of matrices.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="A new directory.  [default: beside the model, with the format at the end of its name]",
)
@click.option(
    "--fallback-threshold",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="X",
    help="Matrices whose products are relatively further off stay bf16.  [default: 0.15 for int4, 0.05 for int8]",
)
@click.option(
    "--calibrate",
    "calibration_path",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    metavar="FILE",
    help="UTF-8 text, or a JSON list of ids: weights that matter for it are held closer, and the loss is measured on it.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with the errors of every tensor.")
def convert(
    model: str,
    format_: str,
    out: Path | None,
    fallback_threshold: float | None,
    calibration_path: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Convert a published model. Interrupted, it goes on where it stopped; what it wrote is read back and verified."""
    with faults_as_lines():
        from .convert_report import render_report

        directory = resolve_model(model)
        target = out or directory.resolve().with_name(f"{directory.resolve().name}-{format_}")
        progress = None if as_json else percent_line("converting")
        if calibration_path is None:
            from .convert import convert_directory

            report = convert_directory(
                directory, target, format_, progress=progress, threads=threads, fallback_threshold=fallback_threshold
            )
        else:
            from .convert_calibrate import convert_calibrated

            report = convert_calibrated(
                directory, target, format_, calibration_path, progress, threads, fallback_threshold
            )
    click.echo(json.dumps(report.to_json()) if as_json else render_report(report))
