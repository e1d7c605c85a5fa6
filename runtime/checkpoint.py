"""A model directory's weight files, matched against what the config says, before anything is allocated.

Every tensor is needed (and has the right shape), or is knowingly skipped (vision tower, MTP block, a head that the config ties), or is
an error. Imports neither torch nor numpy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import (
    CheckpointCorrupt,
    ConfigInvalid,
    TensorDtype,
    TensorMissing,
    TensorShape,
    UnexpectedTensor,
    Unsupported,
)
from .json_file import MAX_CONFIG_BYTES, read_json_object
from .model_config import ModelConfig
from .safetensors_file import TensorEntry, read_header
from .tensors import HEAD, PUBLISHED_PREFIX, TensorSpec, expected_tensors

INDEX_FILE = "model.safetensors.index.json"
TEXT_ONLY_PREFIX = "model."
SKIPPED_PREFIXES = {"model.visual.": "visual", "visual.": "visual", "mtp.": "mtp", "model.mtp.": "mtp"}
WEIGHT_DTYPES = ("BF16", "F16", "F32")
PICKLED_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
MAX_FILES = 1024


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """In which file a tensor lies, and where."""

    path: Path
    entry: TensorEntry


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The trunk's tensors by relative name (tensors.py), and how many others the files have, by kind."""

    places: Mapping[str, tuple[TensorPlace, ...]]
    """The parts of each tensor in row-major order: one, but for experts that are stored one by one."""
    skipped: Mapping[str, int]
    files: tuple[Path, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the trunk in the files."""
        return sum(place.entry.num_bytes for parts in self.places.values() for place in parts)


def open_checkpoint(directory: Path, config: ModelConfig) -> Checkpoint:
    """Find, read and match all headers. Raises CheckpointCorrupt, TensorFault's children, Unsupported, ConfigInvalid."""
    found, files = find_tensors(directory)
    prefix = PUBLISHED_PREFIX if any(name.startswith(PUBLISHED_PREFIX) for name in found) else TEXT_ONLY_PREFIX
    places: dict[str, tuple[TensorPlace, ...]] = {}
    for name, spec in expected_tensors(config).items():
        full = name if name == HEAD else f"{prefix}{name}"
        parts = expert_parts(full, spec) if full not in found else {}
        if next(iter(parts), None) not in found:
            parts = {full: spec}
        places[name] = tuple(take_tensor(found, part, shape) for part, shape in parts.items())
    return Checkpoint(places, count_skipped(found), files)


def take_tensor(found: dict[str, TensorPlace], name: str, spec: TensorSpec) -> TensorPlace:
    """Remove `name` from `found`, checked. Raises TensorMissing, TensorDtype, TensorShape."""
    place = found.pop(name, None)
    if place is None:
        raise TensorMissing(f"no file has it; its shape would be {list(spec.shape)}", tensor=name)
    if place.entry.dtype not in WEIGHT_DTYPES:
        known = ", ".join(WEIGHT_DTYPES)
        raise TensorDtype(f"is {place.entry.dtype}; weights are {known}", file=place.path.name, tensor=name)
    if place.entry.shape != spec.shape:
        difference = f"has shape {list(place.entry.shape)}, the config says {list(spec.shape)}"
        raise TensorShape(difference, file=place.path.name, tensor=name)
    return place


def expert_parts(name: str, spec: TensorSpec) -> dict[str, TensorSpec]:
    """How re-saved checkpoints store what is published as one tensor of all experts; empty for every other tensor."""
    prefix, _, leaf = name.rpartition(".experts.")
    matrices = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(leaf, ())
    if not matrices or len(spec.shape) != 3:
        return {}
    num_experts, rows, columns = spec.shape
    shape = TensorSpec((rows // len(matrices), columns), spec.dtype)
    return {f"{prefix}.experts.{e}.{matrix}.weight": shape for e in range(num_experts) for matrix in matrices}


def count_skipped(left: Mapping[str, TensorPlace]) -> dict[str, int]:
    """How many of the tensors that the trunk did not take are known, by kind. Raises UnexpectedTensor for another."""
    skipped: Counter[str] = Counter()
    for name, place in left.items():
        kind = next((kind for start, kind in SKIPPED_PREFIXES.items() if name.startswith(start)), None)
        if kind is None and name == HEAD:  # the config ties the head: the embedding stands for it
            kind = "tied_head"
        if kind is None:
            raise UnexpectedTensor("the config has no place for it", file=place.path.name, tensor=name)
        skipped[kind] += 1
    return dict(skipped)


def find_tensors(directory: Path) -> tuple[dict[str, TensorPlace], tuple[Path, ...]]:
    """All tensors of all weight files by full name: those of the index where there is one, else every *.safetensors.

    Raises CheckpointCorrupt, TensorMissing, UnexpectedTensor, TensorDtype, Unsupported.
    """
    index_path = directory / INDEX_FILE
    weight_map = read_index(index_path) if index_path.exists() else None
    if weight_map is None:
        files = tuple(sorted(directory.glob("*.safetensors")))
    else:
        files = tuple(directory / name for name in sorted(set(weight_map.values())))
    if not files:
        if any(True for pattern in PICKLED_PATTERNS for _ in directory.glob(pattern)):
            raise Unsupported("has pickled weights only; they run code when read, so only safetensors are served")
        raise CheckpointCorrupt(f"there is no safetensors file in {directory.name}")
    if len(files) > MAX_FILES:
        raise CheckpointCorrupt(f"{len(files)} weight files are more than {MAX_FILES}")
    found: dict[str, TensorPlace] = {}
    for path in files:
        for name, entry in read_header(path).tensors.items():
            if name in found:
                raise CheckpointCorrupt(f"is in {found[name].path.name} too", file=path.name, tensor=name)
            if weight_map is not None and name not in weight_map:
                raise UnexpectedTensor(f"is not in {INDEX_FILE}", file=path.name, tensor=name)
            found[name] = TensorPlace(path, entry)
    for name, file in (weight_map or {}).items():
        if name not in found or found[name].path.name != file:
            raise TensorMissing(f"{INDEX_FILE} places it here, where it is not", file=file, tensor=name)
    return found, files


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name. File names stay inside the directory. Raises CheckpointCorrupt."""
    try:
        weight_map = read_json_object(path, MAX_CONFIG_BYTES).get("weight_map")
    except ConfigInvalid as error:
        raise CheckpointCorrupt(str(error)) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointCorrupt("has no weight_map", file=path.name)
    for name, file in weight_map.items():
        if (
            not isinstance(file, str)
            or PurePosixPath(file).name != file
            or "\\" in file
            or "\0" in file
            or file in ("", ".", "..")
            or not file.endswith(".safetensors")
        ):
            raise CheckpointCorrupt(f"the index names the file {file!r}", file=path.name, tensor=name)
    return weight_map
