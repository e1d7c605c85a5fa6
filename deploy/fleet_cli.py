"""`shoal node` and `shoal request`: a running fleet from the command line, through the controller's admin routes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import click
from rich.console import Console
from rich.table import Table

from .ask import AskFailed, call

_http = click.option(
    "--http", default="127.0.0.1:8080", show_default=True, metavar="HOST:PORT", help="The controller's HTTP address."
)
_json = click.option("--json", "as_json", is_flag=True, help="For a machine.")

_NODE_COLUMNS = (
    *("id", "state", "model", "format", "backend", "isa"),
    *("running", "waiting", "credits", "pid", "engine_pid"),
)


def _get(http: str, path: str) -> Any:
    try:
        return call(http if "://" in http else f"http://{http}", "GET", path)
    except AskFailed as error:
        raise click.ClickException(str(error)) from error


def _print_table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*("-" if row.get(column) is None else str(row[column]) for column in columns))
    # A pipe has no width: nothing may be cut there.
    Console(width=None if Console().is_terminal else 200, highlight=False).print(table)


@click.command()
@_http
@_json
def node_list(http: str, as_json: bool) -> None:
    """Nodes that the controller knows, with what each serves and how busy it is."""
    nodes = _get(http, "/admin/v1/nodes")["nodes"]
    if as_json:
        click.echo(json.dumps(nodes))
    else:
        _print_table(_NODE_COLUMNS, nodes)


@click.command()
@click.argument("node_id", metavar="ID")
@_http
def node_show(node_id: str, http: str) -> None:
    """One node in full, as JSON."""
    click.echo(json.dumps(_get(http, f"/admin/v1/nodes/{quote(node_id, safe='')}"), indent=2))


@click.command()
@_http
@_json
def request_list(http: str, as_json: bool) -> None:
    """The latest requests with their tokens, times and ends. Prompts and answers are kept nowhere."""
    requests = _get(http, "/admin/v1/requests")["requests"]
    if as_json:
        click.echo(json.dumps(requests))
    else:
        _print_table(("id", "model", "node", "finish_reason", "prompt_tokens", "completion_tokens"), requests)


@click.command()
@click.argument("request_id", metavar="ID")
@_http
def request_show(request_id: str, http: str) -> None:
    """One request in full, as JSON, without its content."""
    click.echo(json.dumps(_get(http, f"/admin/v1/requests/{quote(request_id, safe='')}"), indent=2))
