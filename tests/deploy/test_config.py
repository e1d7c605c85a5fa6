"""Flag before environment before file before default; unknown keys and unreadable files end in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from shoal.deploy.cli import COMMANDS, root
from shoal.deploy.config_file import ConfigFileError, bind_tables, load_config_file
from shoal.deploy.lazy_group import CommandSpec, LazyGroup


@click.command()
@click.option("--agents", type=int, default=1)
@click.option("--ready-file")
def probe(agents: int, ready_file: str | None) -> None:
    click.echo(f"{agents} {ready_file}")


def make_root() -> LazyGroup:
    """The real root's loading of the file over one small command."""
    group = LazyGroup(
        name="shoal",
        commands_by_name={"probe": CommandSpec(f"{__name__}:probe", "A probe.")},
        context_settings={"auto_envvar_prefix": "SHOAL"},
    )
    group.add_command(probe, "probe")
    return group


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def shoal(home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "shoal.deploy", *words],
        env=os.environ | {"SHOAL_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_file_gives_defaults_and_the_environment_and_flags_win(home: Path) -> None:
    home.mkdir()
    (home / "shoal.toml").write_text('[node.list]\nhttp = "127.0.0.1:1"\n')
    assert "127.0.0.1:1" in shoal(home, "node", "list").stderr
    assert "127.0.0.1:2" in shoal(home, "node", "list", SHOAL_NODE_LIST_HTTP="127.0.0.1:2").stderr
    flagged = shoal(home, "node", "list", "--http", "127.0.0.1:3", SHOAL_NODE_LIST_HTTP="127.0.0.1:2")
    assert "127.0.0.1:3" in flagged.stderr
    assert flagged.returncode == 1


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[up\n", "not valid TOML"),
        ("[upp]\n", "'upp'"),
        ("agents = 2\n", "'agents'"),
        ("[node.list]\nagnts = 2\n", "'node.list.agnts'"),
        ("[node.lst]\nhttp = 'x'\n", "'node.lst'"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_with_status_2(home: Path, content: str, named: str) -> None:
    home.mkdir()
    (home / "shoal.toml").write_text(content)
    done = shoal(home, "node", "list")
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ") and named in line
    assert "Traceback" not in done.stderr


def test_a_named_file_must_be_there(home: Path) -> None:
    done = shoal(home, "--config", str(home / "absent.toml"), "version")
    assert done.returncode == 2 and "cannot read the configuration file" in done.stderr


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shoal.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigFileError, match="not UTF-8"):
        load_config_file(path, required=True, tables={"up"})


def test_dashes_and_underscores_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "shoal.toml"
    path.write_text('[up]\nready-file = "x"\n')
    assert load_config_file(path, required=True, tables={"up"}) == {"up": {"ready_file": "x"}}


def test_wrong_keys_are_found_at_every_depth() -> None:
    group = make_root()
    with click.Context(group) as ctx:
        tables = {"probe": {"agents": 2, "agent": 3}, "other": {}}
        assert bind_tables(group, ctx, tables) == ({"probe": {"agents": 2}}, ["probe.agent", "other"])


def test_config_check_and_show(home: Path) -> None:
    home.mkdir()
    (home / "shoal.toml").write_text("[up]\nagents = 2\nagnts = 3\n")
    checked = shoal(home, "config", "check")
    assert checked.returncode == 1 and "up.agnts" in checked.stderr
    (home / "shoal.toml").write_text("[up]\nagents = 2\n")
    assert shoal(home, "config", "check").returncode == 0
    shown = json.loads(shoal(home, "config", "show", "--json").stdout)
    assert shown["values"] == {"up": {"agents": 2}}


def _all_commands(group: click.Group, ctx: click.Context, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        found += _all_commands(command, ctx, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


def test_every_command_loads_and_has_help_for_each_option() -> None:
    with click.Context(root) as ctx:
        paths = _all_commands(root, ctx)
    assert {path[0] for path in paths} == set(COMMANDS)
    for path in paths:
        done = CliRunner().invoke(root, [*path, "--help"])
        assert done.exit_code == 0, done.output
        command: click.Command | None = root
        with click.Context(root) as ctx:
            for word in path:
                assert isinstance(command, click.Group)
                command = command.get_command(ctx, word)
        assert command is not None and command.help, path
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{path} {parameter.name} has no help"


def test_the_root_imports_nothing_heavy() -> None:
    code = (
        "import sys; from shoal.deploy.cli import root;"
        "root.main(['--help'], standalone_mode=False);"
        "print([name for name in ('torch','numpy','grpc','sqlalchemy','shoal.agent','shoal.runtime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_an_unknown_flag_and_command_end_with_2(home: Path) -> None:
    for words in (("up", "--agnts", "2"), ("modell",), ("model", "fetch")):
        done = shoal(home, *words)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("Error: No such")
