"""`shoal version`."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version as distribution_version

import click

from .config_file import shoal_home


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For a machine.")
def version(as_json: bool) -> None:
    """The version, the Python that runs it, and the folder where shoal keeps its files."""
    facts = {
        "version": distribution_version("shoal"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "home": str(shoal_home()),
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(f"shoal {facts['version']} (Python {facts['python']}, {facts['platform']})\nhome: {facts['home']}")
