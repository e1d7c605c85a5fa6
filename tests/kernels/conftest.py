"""`packing` of this folder, for every test beside it: the root is not on the path, so nothing there can be imported."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def packing():
    path = Path(__file__).parent / "packing.py"
    spec = importlib.util.spec_from_file_location("shoal_test_packing", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
