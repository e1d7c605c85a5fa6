"""Environment variables and configuration keys follow the options as people write them, whatever the function calls them."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from shoal.deploy.cli import root
from shoal.deploy.config_file import bind_tables


def all_options() -> Iterator[tuple[tuple[str, ...], click.Command, click.Option]]:
    """Every visible option of the tree with the path of its command."""

    def walk(
        command: click.Command, path: tuple[str, ...]
    ) -> Iterator[tuple[tuple[str, ...], click.Command, click.Option]]:
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                yield path, command, parameter
        if isinstance(command, click.Group):
            for name in command.list_commands(ctx):
                child = command.get_command(ctx, name)
                assert child is not None
                yield from walk(child, (*path, name))

    with click.Context(root) as ctx:
        yield from walk(root, ())


def test_every_option_has_its_environment_variable() -> None:
    for path, _, option in all_options():
        name = max(option.opts, key=len).lstrip("-").replace("-", "_")
        expected = "_".join(("shoal", *path, name)).upper()
        # Without a name of its own, click makes it from the path and the parameter's name.
        actual = option.envvar or "_".join(("shoal", *path, str(option.name))).upper()
        assert actual == expected or (name == "home" and actual == "SHOAL_HOME")


def test_configuration_keys_are_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    with click.Context(root) as ctx:
        bound, unknown = bind_tables(root, ctx, {"up": {"model": ["a"]}, "agent": {"run": {"id": "n", "model": ["b"]}}})
    assert unknown == []
    assert bound == {"up": {"models": ["a"]}, "agent": {"run": {"id": "n", "model": ["b"]}}}
    monkeypatch.setenv("SHOAL_UP_MODEL", "x y")
    command = root.get_command(click.Context(root), "up")
    assert command is not None
    with command.make_context("up", [], parent=click.Context(root, auto_envvar_prefix="SHOAL")) as made:
        assert made.params["models"] == ("x", "y")
