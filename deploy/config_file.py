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


def wrong_keys(group: click.Group, ctx: click.Context, tables: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Every key below `tables` that is neither an option nor a command of `group`, as dotted names.

    Imports the commands whose tables it meets, and no others.
    """
    found: list[str] = []
    for name, value in tables.items():
        command = group.get_command(ctx, name)
        dotted = f"{prefix}{name}"
        if command is None:
            if name not in _option_names(group):
                found.append(dotted)
        elif not isinstance(value, Mapping):
            found.append(dotted)
        elif isinstance(command, click.Group):
            found += wrong_keys(command, ctx, value, f"{dotted}.")
        else:
            found += [f"{dotted}.{key}" for key in value if key not in _option_names(command)]
    return found


def _option_names(command: click.Command) -> set[str | None]:
    return {parameter.name for parameter in command.params}
