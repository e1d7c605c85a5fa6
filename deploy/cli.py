"""The command `shoal`: one tree of nouns and verbs, each loaded from its own package only when it is called.

Every option can stand on the command line, in the environment (`SHOAL_` + command path + option) or in the configuration file, in
this order of precedence; exit codes are 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import click

from .config_file import ConfigFileError, bind_tables, default_config_path, load_config_file
from .lazy_group import CommandSpec, LazyGroup

MODEL_COMMANDS = {
    "convert": CommandSpec(
        "shoal.runtime.convert_cli:convert", "Convert a published model: int4, int8 or bf16, mapped."
    ),
    "list": CommandSpec("shoal.agent.cli:model_list", "Models of the catalogue and which are in the store."),
    "pull": CommandSpec("shoal.agent.cli:model_pull", "Download a model into the store, verified."),
    "score": CommandSpec("shoal.runtime.model_cli:score", "Logits and states of a model on given ids."),
    "show": CommandSpec("shoal.runtime.model_cli:show", "Facts of a checkpoint: sizes, bytes, tensors."),
    "synth": CommandSpec("shoal.runtime.model_cli:synth", "Write a random checkpoint in the published layout."),
}
NODE_COMMANDS = {
    "list": CommandSpec("shoal.deploy.fleet_cli:node_list", "Nodes that the controller knows."),
    "show": CommandSpec("shoal.deploy.fleet_cli:node_show", "One node in full."),
}
REQUEST_COMMANDS = {
    "list": CommandSpec("shoal.deploy.fleet_cli:request_list", "The latest requests, without their content."),
    "show": CommandSpec("shoal.deploy.fleet_cli:request_show", "One request in full, without its content."),
}
CONFIG_COMMANDS = {
    "check": CommandSpec("shoal.deploy.config_cli:check", "Check the configuration file against every command."),
    "show": CommandSpec("shoal.deploy.config_cli:show", "The configuration file as it is read."),
}
COMMANDS: dict[str, CommandSpec | dict[str, CommandSpec]] = {
    "agent": CommandSpec("shoal.agent.cli:agent", "What runs on each machine of the fleet."),
    "bench": CommandSpec("shoal.runtime.bench_cli:bench", "Prefill and decode of a model, in tokens a second."),
    "config": CONFIG_COMMANDS,
    "controller": CommandSpec("shoal.controller.cli:controller", "What routes requests to the agents."),
    "explain": CommandSpec("shoal.agent.cli:explain", "What this machine would serve, and why nothing larger."),
    "generate": CommandSpec(
        "shoal.runtime.generate_cli:generate", "Answer one prompt on this machine, without a fleet."
    ),
    "model": MODEL_COMMANDS,
    "node": NODE_COMMANDS,
    "request": REQUEST_COMMANDS,
    "up": CommandSpec("shoal.deploy.up_cli:up", "A whole fleet on this machine: controller, agents, console."),
    "version": CommandSpec("shoal.deploy.version_cli:version", "The version, and where things are."),
}
GROUP_HELP = {
    "config": "The configuration file.",
    "model": "Checkpoints: the store, random ones, exact scores.",
    "node": "Machines of a running fleet.",
    "request": "Requests of a running fleet.",
}
COLLECTED_AFTER = 50_000
"""Objects more than were freed, until the collector looks for cycles. The interpreter's 700 make it look hundreds of times while modules
and vocabularies are built, which all live on."""
ENDS_AT_ONCE = ("generate", "bench")
"""Commands that leave without the interpreter's farewell: taking a loaded model apart piece by piece only keeps whoever waits for the
end waiting, and the system takes it back whole. They own nothing that has to be put away."""

root = LazyGroup(
    name="shoal",
    commands_by_name=COMMANDS,
    group_help=GROUP_HELP,
    help="One inference service out of the machines that you already own.",
    params=[
        click.Option(
            ["--config", "config_path"],
            envvar="SHOAL_CONFIG",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Configuration file (TOML).  [default: $SHOAL_HOME/shoal.toml, if it is there]",
        )
    ],
    context_settings={"auto_envvar_prefix": "SHOAL", "help_option_names": ["-h", "--help"], "max_content_width": 110},
)


@click.pass_context
def load_defaults(ctx: click.Context, config_path: Path | None) -> None:
    """Read the configuration file into click's defaults, before any command looks at its options."""
    path = config_path or default_config_path()
    try:
        tables = load_config_file(path, required=config_path is not None, tables=set(COMMANDS))
        # Only the table of the command that runs: the others would have to be imported (`shoal config check` does).
        name = ctx.invoked_subcommand
        ctx.default_map, unknown = bind_tables(root, ctx, {name: tables[name]}) if name in tables else ({}, [])
        if unknown:
            raise ConfigFileError(f"unknown key {unknown[0]!r} in {path}; `shoal {name} --help` leads to what is known")
    except ConfigFileError as error:
        raise click.UsageError(str(error)) from error
    ctx.ensure_object(dict).update(config_path=path, tables=tables, command=ctx.invoked_subcommand)


root.callback = load_defaults


def main() -> None:
    """Entry point of the console script. Names of files and models come as they are; nothing here imports torch."""
    gc.set_threshold(COLLECTED_AFTER, 10, 10)
    state: dict[str, Any] = {}
    try:
        root.main(prog_name="shoal", windows_expand_args=False, obj=state)
    except SystemExit as end:
        if state.get("command") in ENDS_AT_ONCE and isinstance(end.code, int):
            _leave(end.code)
        raise


def _leave(code: int) -> None:
    """End the process once its output is written; return where it cannot be, for the interpreter to say so."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return
    os._exit(code)
