"""Makes the doubles of this folder importable for its tests (importlib mode puts no folder on the path)."""

import importlib.util
import sys
from pathlib import Path

for name in ("fake_fleet", "fake_backend"):
    if f"shoal_{name}" not in sys.modules:
        spec = importlib.util.spec_from_file_location(f"shoal_{name}", Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[f"shoal_{name}"] = module
        spec.loader.exec_module(module)
