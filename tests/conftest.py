"""Shared set-up: the import path, threads that wait without spinning, and how kernels run."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# `python -m pytest` puts the repo root on sys.path; `import kernels`, which transformers tries,
# would then load our folder a second time under the wrong name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]

# Threads of a team that spin for each other starve everything else on a machine with few cores.
# Read when torch loads, which is after this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# Tests that poison fresh memory do so by PyTorch's deterministic mode, which refuses cuBLAS without
# this. Read at the first product on a device.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Without a GPU Triton's interpreter runs the kernels. Read when a kernel is defined; `make gpu`
# sets it to 0.
os.environ.setdefault("TRITON_INTERPRET", "1")
