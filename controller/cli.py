"""`shoal controller run`: parses into `ControllerConfig`, runs the service, maps its failures to one line and an exit code."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine
from pathlib import Path

import click
import platformdirs

from .config import ConfigInvalid, ControllerConfig, parse_address


@click.group()
def controller() -> None:
    """What routes requests to the agents: HTTP and gRPC for clients, the link for agents."""


@controller.command()
@click.option(
    "--http", default="127.0.0.1:8080", show_default=True, metavar="HOST:PORT", help="Where HTTP clients come."
)
@click.option(
    "--grpc",
    default="127.0.0.1:9090",
    show_default=True,
    metavar="HOST:PORT",
    help="Where agents and gRPC clients come.",
)
@click.option("--home", type=click.Path(path_type=Path, file_okay=False), envvar="SHOAL_HOME",
              help="Folder of state.db.  [default: $SHOAL_HOME, else the user's data folder]")  # fmt: skip
@click.option("--insecure", is_flag=True, help="Listen where other machines reach it, without TLS.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What is written to stderr.",
)
@click.option("--status-file", type=click.Path(path_type=Path, dir_okay=False), hidden=True)
@click.option("--until-eof", is_flag=True, hidden=True, help="End when stdin ends.")
def run(
    http: str, grpc: str, home: Path | None, insecure: bool, log_level: str, status_file: Path | None, until_eof: bool
) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    try:
        config = ControllerConfig(
            http=parse_address(http),
            grpc=parse_address(grpc),
            home=home or Path(platformdirs.user_data_dir("shoal")),
            version=_version(),
            insecure=insecure,
            status_file=status_file,
            until_eof=until_eof,
        )
        config.check()
    except ConfigInvalid as error:
        raise click.UsageError(str(error)) from error
    logging.basicConfig(stream=sys.stderr, level=log_level.upper(), format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every plug-in at each start
    for address in config.exposed:
        click.echo(
            f"WARNING: {address} has no TLS: everybody on the network can read prompts and answers, and send requests",
            err=True,
        )
    # Imported here: the servers take a second, `--help` and a usage error should not.
    from .service import ServiceFailed, serve

    try:
        _run(serve(config))
    except ServiceFailed as error:
        raise click.ClickException(str(error)) from error


def _run(main: Coroutine[object, object, None]) -> None:
    """On uvloop where there is one."""
    if sys.platform == "win32":
        asyncio.run(main)
        return
    import uvloop

    uvloop.run(main)


def _version() -> str:
    from shoal import __version__

    return __version__
