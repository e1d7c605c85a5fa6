"""What this folder's tests share. The root is not on the path, so nothing beside them can be imported by its place: `packing`,
`block_quantisers` and `tiny_models` are fixtures, and importable as `shoal_test_packing` and so on."""

import importlib.util
import sys
from pathlib import Path

import pytest


def load_beside(name):
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"shoal_test_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


PACKING, BLOCK_QUANTISERS, TINY_MODELS = (load_beside(name) for name in ("packing", "block_quantisers", "tiny_models"))


@pytest.fixture(scope="session")
def packing():
    return PACKING


@pytest.fixture(scope="session")
def block_quantisers():
    return BLOCK_QUANTISERS


@pytest.fixture(scope="session")
def tiny_models():
    return TINY_MODELS


@pytest.fixture(scope="session")
def models():
    """Of a weight format, a seed and changed sizes: a tiny model, made once."""
    made = {}

    def get(weight_format, seed=0, **changes):
        key = weight_format, seed, tuple(changes.items())
        if key not in made:
            made[key] = TINY_MODELS.random_model(PACKING, seed, weight_format, **changes)
        return made[key]

    return get
