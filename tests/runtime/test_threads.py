"""How many threads a model is given where nobody says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

POCKET = Path(__file__).parents[2] / "models" / "pocket"
CODE = """
import sys, torch
from shoal.runtime.config import EngineOptions, load_model_config
from shoal.runtime.model import HybridModel
threads = int(sys.argv[2]) or None
HybridModel.load(sys.argv[1], load_model_config(sys.argv[1]), EngineOptions(threads=threads))
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(("given", "expected"), [(0, 1), (2, 2)])
def test_a_small_model_takes_one_thread_unless_told_otherwise(given: int, expected: int) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", CODE, str(POCKET), str(given)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == [str(expected)]
