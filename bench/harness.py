"""What every bench needs: a table on the screen and a JSON file with commit and hardware."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


class Table:
    """Prints rows under a heading as they come."""

    def __init__(self, *columns: str) -> None:
        self._widths = [max(len(column), 10) for column in columns]
        self.row(*columns)

    def row(self, *cells: object) -> None:
        """Print one row, cells aligned to the right."""
        texts = [str(cell).rjust(width) for cell, width in zip(cells, self._widths, strict=True)]
        print("  ".join(texts), flush=True)


def write_result(name: str, result: Mapping[str, Any]) -> Path:
    """Write a result to bench/results/<name>.json, with the commit and the hardware."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {"bench": name, "commit": commit(), "hardware": hardware(), "result": dict(result)}
    record["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")
    return path


def commit() -> str:
    """The commit of this checkout, with a + when it has uncommitted changes."""
    git = ["git", "-C", str(ROOT)]
    done = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, check=False)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode
    return done.stdout.decode().strip() + ("+" if changed else "")


def hardware() -> dict[str, Any]:
    """Processor, cores, and the versions that decide speed."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    found: dict[str, Any] = {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    try:
        import torch
    except ImportError:
        return found
    found["torch"] = torch.__version__
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and the 20th and 80th percentiles."""
    low, middle, high = np.percentile(values, (20, 50, 80))
    return {"median": float(middle), "p20": float(low), "p80": float(high)}


def save_random_qwen3(path: Path, *, width: int, **fields: int) -> int:
    """Write a random Qwen3 with tied embeddings; returns its number of parameters.

    `fields` go to the transformers config as they are, for instance `num_hidden_layers=4`.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(hidden_size=width, tie_word_embeddings=True, **fields)
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(path)
    return sum(parameter.numel() for parameter in model.parameters())
