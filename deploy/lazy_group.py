"""A click group whose commands are named by strings and imported when they are used, so that `shoal --help` stays light."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """Where a command lives (`module:attribute`) and its line in the parent's help."""

    target: str
    short_help: str

    def load(self) -> click.Command:
        """Import it. Raises click.ClickException when a dependency of an extra is not installed."""
        module_name, _, attribute = self.target.partition(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and error.name.startswith("shoal"):
                raise
            raise click.ClickException(
                f"this command needs the package {error.name!r}: install shoal with the extra it belongs to, "
                "for example pip install 'shoal[all]'"
            ) from error
        command = getattr(module, attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.target} is not a command")
        return command


def name_environment(command: click.Command, path: tuple[str, ...]) -> None:
    """Name each option's environment variable after the option, where the parameter's own name differs from it."""
    for option in command.params:
        if isinstance(option, click.Option) and option.envvar is None:
            names = [flag[2:].replace("-", "_") for flag in option.opts if flag.startswith("--")]
            if names and option.name not in names:
                option.envvar = "_".join((*path, names[0])).upper()
    if isinstance(command, click.Group) and not isinstance(command, LazyGroup):
        for name, child in command.commands.items():
            name_environment(child, (*path, name))


class LazyGroup(click.Group):
    """Commands by name: a spec, or a mapping of specs that becomes a group of its own."""

    def __init__(
        self,
        *,
        commands_by_name: Mapping[str, CommandSpec | dict[str, CommandSpec]],
        group_help: Mapping[str, str] | None = None,
        path: tuple[str, ...] = ("shoal",),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._specs = commands_by_name
        self._group_help = group_help or {}
        self._path = path

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._specs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        spec = self._specs.get(cmd_name)
        if spec is None:
            return None
        if isinstance(spec, CommandSpec):
            command = spec.load()
            name_environment(command, (*self._path, cmd_name))
            return command
        path = (*self._path, cmd_name)
        return LazyGroup(name=cmd_name, commands_by_name=spec, path=path, help=self._group_help.get(cmd_name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [
            (name, spec.short_help if isinstance(spec, CommandSpec) else self._group_help.get(name, ""))
            for name, spec in sorted(self._specs.items())
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
