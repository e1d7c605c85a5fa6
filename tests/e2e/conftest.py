"""One fleet of two agents for the tests that do not harm it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest imports test files by path here, so the module beside them is given a name by hand.
_spec = importlib.util.spec_from_file_location("shoal_e2e_fleet", Path(__file__).with_name("fleet.py"))
assert _spec is not None and _spec.loader is not None
fleet_module = importlib.util.module_from_spec(_spec)
sys.modules["shoal_e2e_fleet"] = fleet_module
_spec.loader.exec_module(fleet_module)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """`shoal up --agents 2` with pocket, shared by a test process."""
    with fleet_module.running_fleet(tmp_path_factory.mktemp("fleet") / "home", "--agents", "2") as running:
        yield running
