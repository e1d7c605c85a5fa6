"""`packing`, `block_quantisers` and `tiny_models` of this folder, for every test beside them: the root is not on the path, so nothing there can be
imported."""

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


@pytest.fixture(scope="session")
def packing():
    return load_beside("packing")


@pytest.fixture(scope="session")
def block_quantisers():
    return load_beside("block_quantisers")


@pytest.fixture(scope="session")
def tiny_models():
    return load_beside("tiny_models")
