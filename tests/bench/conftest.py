"""The benchmarks are scripts that import their neighbours; their tests do the same."""

import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.append(HERE)
