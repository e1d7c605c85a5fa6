"""Makes `fake_fleet.py` importable for the tests of this folder (importlib mode puts no folder on the path)."""

import importlib.util
import sys
from pathlib import Path

NAME = "shoal_fake_fleet"
if NAME not in sys.modules:
    spec = importlib.util.spec_from_file_location(NAME, Path(__file__).with_name("fake_fleet.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
