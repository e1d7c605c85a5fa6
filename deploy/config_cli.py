"""`shoal config show|check`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from .config_file import bind_tables


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For a machine.")
@click.pass_context
def show(ctx: click.Context, as_json: bool) -> None:
    """The configuration file as it is read: its path and its values."""
    root = ctx.find_root()
    path, values = root.obj["config_path"], root.obj["tables"]
    if as_json:
        click.echo(json.dumps({"path": str(path), "exists": path.exists(), "values": values}, default=str))
        return
    click.echo(f"# {path}" + ("" if path.exists() else " (not there)"))
    for table, value in _flattened(values, ""):
        click.echo(f"{table} = {json.dumps(value, default=str)}")


def _flattened(values: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        rows += _flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return rows


@click.command()
@click.pass_context
def check(ctx: click.Context) -> None:
    """Check the configuration file against every command's options. Exit code 1 names what is unknown."""
    root = ctx.find_root()
    path = root.obj["config_path"]
    assert isinstance(root.command, click.Group)
    _, wrong = bind_tables(root.command, root, root.obj["tables"])
    if wrong:
        raise click.ClickException(f"{path}: unknown keys: {', '.join(wrong)}")
    click.echo(f"{path}: " + ("every key is known" if path.exists() else "not there, the defaults hold"))
