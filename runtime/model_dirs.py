"""Where a model of a given name lies. No torch, no network: a name is a directory, or it is not there.

argument                          directory
a directory with a config.json    itself
pocket                            the model that is packaged
qwen3.5-0.8b, Qwen/Qwen3.5-0.8B   $SHOAL_HOME/models/Qwen--Qwen3.5-0.8B
anything else                     $SHOAL_HOME/models/<name>, `/` written as `--`
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import platformdirs

from .errors import ModelLoadError

CONFIG_FILE = "config.json"

CATALOGUE = {f"qwen3.5-{size.lower()}": f"Qwen/Qwen3.5-{size}" for size in ("0.8B", "2B", "4B", "9B", "27B", "35B-A3B")}
"""Short names of published repositories."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


class ModelNotFound(ModelLoadError):
    """No directory of that name."""

    code = "model_not_found"


def shoal_home(environment: Mapping[str, str] = os.environ) -> Path:
    """$SHOAL_HOME, by default the platform's directory for a user's data."""
    given = environment.get("SHOAL_HOME")
    return Path(given).expanduser() if given else Path(platformdirs.user_data_dir("shoal"))


def store_directory_name(name: str) -> str:
    """The name of a model's directory in the store."""
    return CATALOGUE.get(name, name).replace("/", "--")


def packaged_pocket() -> Path | None:
    """The model that comes with the package, or with the checkout; None where there is none."""
    folder = Path(str(resources.files("shoal"))) / "models" / "pocket"
    checkout = Path(__file__).resolve().parents[1] / "models" / "pocket"
    return next((path for path in (folder, checkout) if (path / CONFIG_FILE).is_file()), None)


def resolve_model(name_or_dir: str, home: Path | None = None) -> Path:
    """The directory of a model. Raises ModelNotFound, which says where it was looked for."""
    path = Path(name_or_dir).expanduser()
    is_name = _NAME.fullmatch(name_or_dir) is not None
    if (path / CONFIG_FILE).is_file():
        return path
    if not is_name:
        if path.is_dir():
            raise ModelNotFound(f"{path} has no {CONFIG_FILE}")
        raise ModelNotFound(f"{path} is not a directory")
    if name_or_dir == "pocket" and (pocket := packaged_pocket()) is not None:
        return pocket
    stored = (shoal_home() if home is None else home) / "models" / store_directory_name(name_or_dir)
    if (stored / CONFIG_FILE).is_file():
        return stored
    raise ModelNotFound(
        f"there is no model {name_or_dir!r}: neither a directory here nor {stored}; "
        f"`shoal model pull {name_or_dir}` fetches a published one"
    )
