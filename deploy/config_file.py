"""The configuration file: TOML tables named like commands, keys named like options (`-` or `_`).

[up]
agents = 2

[agent.run]
controller = "10.0.0.5:9090"
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import platformdirs

MAX_CONFIG_BYTES = 1024 * 1024


class ConfigFileError(Exception):
    """The file cannot be read, is not TOML, or has a key that nothing knows. The message is one line and says what to do."""


def shoal_home() -> Path:
    """The folder of everything that shoal keeps: `$SHOAL_HOME`, else the platform's user data directory."""
    return Path(os.environ.get("SHOAL_HOME") or platformdirs.user_data_dir("shoal"))


def default_config_path() -> Path:
    """`$SHOAL_HOME/shoal.toml`."""
    return shoal_home() / "shoal.toml"


def load_config_file(path: Path, *, required: bool, tables: set[str]) -> dict[str, Any]:
    """Read `path` as click's default map: nested by command, option names with underscores.

    A file that is not there is empty unless `required`. Raises ConfigFileError, also for a top-level name outside `tables`.
    """
    try:
        if not required and not path.exists():
            return {}
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigFileError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes: is it a configuration file?")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigFileError(
            f"cannot read the configuration file {path}: {error.strerror}; give another by --config"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigFileError(f"the configuration file {path} is not UTF-8; save it as UTF-8 text") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigFileError(f"the configuration file {path} is not valid TOML: {error}") from error
    for name, value in content.items():
        if name not in tables or not isinstance(value, dict):
            raise ConfigFileError(
                f"unknown key {name!r} in the configuration file {path}; its tables are named like commands: "
                f"{', '.join(sorted(tables))}"
            )
    return {name: _normalised(value) for name, value in content.items()}


def _normalised(value: Any) -> Any:
    """Option names as click's parameter names, at every depth of tables."""
    if not isinstance(value, dict):
        return value
    return {str(key).replace("-", "_"): _normalised(item) for key, item in value.items()}


def bind_tables(
    group: click.Group, ctx: click.Context, tables: Mapping[str, Any], prefix: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """`tables` with each option's name replaced by its parameter's, and every key that nothing knows, as dotted names.

    Imports the commands whose tables it meets, and no others.
    """
    bound: dict[str, Any] = {}
    unknown: list[str] = []
    options = parameters_by_option(group)
    for name, value in tables.items():
        command = group.get_command(ctx, name)
        if command is None and name in options:
            bound[options[name]] = value
        elif command is None or not isinstance(value, Mapping):
            unknown.append(f"{prefix}{name}")
        elif isinstance(command, click.Group):
            bound[name], below = bind_tables(command, ctx, value, f"{prefix}{name}.")
            unknown += below
        else:
            known = parameters_by_option(command)
            bound[name] = {known[key]: item for key, item in value.items() if key in known}
            unknown += [f"{prefix}{name}.{key}" for key in value if key not in known]
    return bound, unknown


def parameters_by_option(command: click.Command) -> dict[str, str]:
    """Parameter names by the option as people write it: `--json` is `json` whatever the function calls it."""
    return {
        flag.removeprefix("--").replace("-", "_"): option.name
        for option in command.params
        if isinstance(option, click.Option) and option.name is not None
        for flag in option.opts
        if flag.startswith("--")
    }
