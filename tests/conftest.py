"""Shared set-up: keeps the repository root off the import path."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# `python -m pytest` puts the repo root on sys.path; `import kernels`, which transformers tries,
# would then load our folder a second time under the wrong name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
