"""The configuration of a model and of an engine: what the agent and the engine both read. Neither torch nor numpy.

`ModelConfig` are the sizes, `EngineOptions` how to run them, `GenerationDefaults` how answers end and are sampled.
"""

from __future__ import annotations

from pathlib import Path

from .errors import ConfigInvalid, ModelLoadError, OptionInvalid, Unsupported
from .generation_defaults import GenerationDefaults, read_generation_defaults
from .json_file import read_json_object
from .model_config import FULL_ATTENTION, LINEAR_ATTENTION, ModelConfig, MoeConfig, VisionConfig
from .options import CLI_OPTIONS, EngineOptions
from .rope_config import RopeConfig

CONFIG_FILE = "config.json"

__all__ = [
    "CLI_OPTIONS",
    "CONFIG_FILE",
    "FULL_ATTENTION",
    "LINEAR_ATTENTION",
    "ConfigInvalid",
    "EngineOptions",
    "GenerationDefaults",
    "ModelConfig",
    "ModelLoadError",
    "MoeConfig",
    "OptionInvalid",
    "RopeConfig",
    "Unsupported",
    "VisionConfig",
    "load_generation_defaults",
    "load_model_config",
]


def load_model_config(directory: Path | str) -> ModelConfig:
    """Sizes of the model in `directory`. Raises ConfigInvalid (the file, the key) or Unsupported."""
    folder = Path(directory)
    if not folder.is_dir():
        raise ConfigInvalid(f"{folder} is not a directory")
    return ModelConfig.from_mapping(read_json_object(folder / CONFIG_FILE))


def load_generation_defaults(directory: Path | str, config: ModelConfig) -> GenerationDefaults:
    """Stop ids and sampling of the model in `directory`. Raises ConfigInvalid."""
    return read_generation_defaults(Path(directory), config)
