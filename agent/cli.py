"""`shoal agent run`, `shoal explain`, `shoal model list`, `shoal model pull`.

Parameters are named exactly like their options: the environment variables and the keys of the configuration file follow from
the parameter's name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from typing import Any

import click

from .address import parse_controllers, require_safe, split_address
from .errors import AgentError, BadOption
from .identity import check_node_id, load_identity
from .options import engine_options, shoal_home, to_engine_options

HOME_OPTION = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of models, logs, identity.  [default: $SHOAL_HOME]",
)


@contextmanager
def _failing_in_one_line() -> Iterator[None]:
    """A typed error ends the command with one line: status 2 for a wrong option, 1 for everything else."""
    try:
        yield
    except BadOption as error:
        raise click.UsageError(str(error)) from error
    except AgentError as error:
        raise click.ClickException(str(error)) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def agent() -> None:
    """What runs on each machine of the fleet."""


@agent.command()
@click.option("--controller", metavar="H:P[,H:P]", required=True, help="Controllers to dial, all of them at once.")
@click.option(
    "--model", multiple=True, metavar="NAME|DIR", help="What may be served; repeatable.  [default: the store]"
)
@click.option("--insecure", is_flag=True, help="Allow controllers other than loopback without TLS.")
@click.option("--id", metavar="ID", help="The node's id.  [default: made up once, kept in identity/agent.json]")
@click.option("--metrics", metavar="H:P", default="127.0.0.1:0", show_default=True, help="The node's metrics page.")
@HOME_OPTION
@engine_options
@click.option("--status-file", type=click.Path(path_type=Path, dir_okay=False), hidden=True)
@click.option("--until-eof", is_flag=True, hidden=True, help="End when stdin ends.")
def run(
    controller: str,
    model: tuple[str, ...],
    insecure: bool,
    id: str | None,
    metrics: str,
    home: Path | None,
    status_file: Path | None,
    until_eof: bool,
    **engine: Any,
) -> None:
    """Serve the largest model that fits this machine to the controllers, until SIGTERM or Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    from shoal import __version__

    from .service import AgentConfig, run_agent

    with _failing_in_one_line():
        folder = shoal_home(home)
        controllers = parse_controllers(controller)
        split_address(metrics)
        for warning in (
            require_safe(controllers, insecure=insecure, what="the controller"),
            require_safe((metrics,), insecure=insecure, what="the metrics page"),
        ):
            if warning is not None:
                click.secho(warning, err=True, fg="red", bold=True)
        config = AgentConfig(
            node_id=check_node_id(id) if id is not None else load_identity(folder / "identity"),
            version=__version__,
            home=folder,
            controllers=controllers,
            models=model,
            options=to_engine_options(engine),
            metrics=metrics,
            status_file=status_file,
            ends_with_stdin=until_eof,
        )
        failed: BaseException | None = None
        try:
            asyncio.run(run_agent(config, lambda line: click.echo(line, err=True)))
        except* (AgentError, OSError) as group:
            failed = group
        while isinstance(failed, BaseExceptionGroup):
            failed = failed.exceptions[0]
        if isinstance(failed, AgentError):
            raise failed
        if failed is not None:
            raise click.ClickException(str(failed))


@click.command()
@click.option("--model", multiple=True, metavar="NAME|DIR", help="Only these; repeatable.  [default: the store]")
@click.option("--json", is_flag=True, help="For a machine.")
@HOME_OPTION
@engine_options
def explain(model: tuple[str, ...], json: bool, home: Path | None, **engine: Any) -> None:
    """What this machine would serve, and the bytes that exclude the next larger model."""
    from .explain import explanation, explanation_text

    with _failing_in_one_line():
        content = explanation(shoal_home(home), model, to_engine_options(engine))
    click.echo(dumps(content, indent=1) if json else explanation_text(content))


@click.command()
@click.option("--json", is_flag=True, help="For a machine.")
@HOME_OPTION
def model_list(json: bool, home: Path | None) -> None:
    """Models of the catalogue and of the store."""
    from .model_list import list_models, list_text

    rows = list_models(shoal_home(home))
    click.echo(dumps(rows, indent=1) if json else list_text(rows))


@click.command()
@click.argument("model", metavar="NAME|REPO")
@click.option(
    "--source",
    default="huggingface",
    show_default=True,
    metavar="huggingface|URL",
    help="The hub, or a mirror of its API.",
)
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit; pinned to a commit.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", is_flag=True, help="For a machine; implies --yes.")
@HOME_OPTION
def model_pull(model: str, source: str, revision: str, yes: bool, json: bool, home: Path | None) -> None:
    """Download a model into the store: pinned, resumable, every file verified before it is served."""
    from .pull_command import pull_model

    with _failing_in_one_line():
        try:
            pull_model(model, source, revision, shoal_home(home), ask=not (yes or json), as_json=json)
        except OSError as error:
            raise click.ClickException(str(error)) from error


def main() -> None:
    """Entry point of `python -m shoal.agent`."""
    agent.main(prog_name="shoal agent", auto_envvar_prefix="SHOAL_AGENT", windows_expand_args=False)
