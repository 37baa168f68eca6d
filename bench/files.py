"""How long do adapters and states take to move, against a plain copy of as many bytes?

    python bench/files.py            an adapter of about 50 MB, five rounds
    python bench/files.py --quick    a small one, one round: does it run?

A random Qwen3 is served by a worker of its own; the client reaches it over TCP on this machine.
Export and import go through the client: PEFT's two files in a directory, sent and taken in parts.
Saving and loading are the worker's, with and without the optimizer. The copy writes the same bytes
to the same disk and syncs them, as every save does.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from harness import Table, save_random_qwen3, spread, write_result

from weft.client import ServiceClient, TrainingClient
from weft.engine import Engine

FULL: dict[str, int] = {
    "width": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 1536,
    "vocab_size": 32_000,
}
SMALL = {**FULL, "width": 64, "num_hidden_layers": 2, "vocab_size": 512}
RANK = 113  # 50 MB of float32 on the full model


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def copy(source: Path, target: Path) -> None:
    """Copy a file so that it is on the disk."""
    shutil.copyfile(source, target)
    with target.open("rb") as handle:
        os.fsync(handle.fileno())


class Bench:
    """A run, and where its files go."""

    def __init__(self, service: ServiceClient, model: str, folder: Path) -> None:
        self.model = model
        self.folder = folder
        self.rest = service.create_rest_client()
        self.run: TrainingClient = service.create_lora_training_client(model, rank=RANK, seed=0)
        self.light = self.run.save_state("light", include_optimizer=False).result()
        self.whole = self.run.save_state("whole").result()
        self.sizes = {"light": self.light.size_bytes or 0, "whole": self.whole.size_bytes or 0}

    def round(self) -> dict[str, float]:
        """Seconds of each thing, once."""
        adapter, plain = self.folder / "adapter", self.folder / "plain"
        tensors = adapter / "adapter_model.safetensors"
        found = {
            "export": seconds(
                lambda: self.rest.export_peft(self.light.path, adapter, overwrite=True)
            )
        }
        found["copy"] = seconds(lambda: copy(tensors, plain))
        uploaded: list[str] = []
        found["import"] = seconds(
            lambda: uploaded.append(self.rest.upload_peft(adapter, self.model).path)
        )
        self.rest.delete_checkpoint_from_tinker_path(uploaded[0]).result()
        save = partial(self.run.save_state, overwrite=True)
        found["save_light"] = seconds(lambda: save("light", include_optimizer=False).result())
        found["save_whole"] = seconds(lambda: save("whole").result())
        found["load_light"] = seconds(lambda: self.run.load_state(self.light.path).result())
        found["load_whole"] = seconds(
            lambda: self.run.load_state_with_optimizer(self.whole.path).result()
        )
        return found


def measure(rounds: int, fields: dict[str, int]) -> dict[str, Any]:
    """Seconds of all rounds by name, and the sizes of the files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_random_qwen3(folder / "model", **fields)
        model = str(folder / "model")
        listen = ["tcp://127.0.0.1:0"]
        with (
            Engine(model, isolate=True, listen=listen, state_dir=str(folder / "state")) as engine,
            ServiceClient(base_url=engine.addresses[0]) as service,
        ):
            bench = Bench(service, model, folder)
            bench.round()  # the first makes directories and warms caches
            found = [bench.round() for _ in range(rounds)]
    spreads = {key: spread([one[key] for one in found]) for key in found[0]}
    return {"sizes": bench.sizes, "seconds": spreads}


def report(result: dict[str, Any]) -> None:
    """Print seconds, MB/s and the ratio to a copy of as many bytes; adds the ratios."""
    sizes, found = result["sizes"], result["seconds"]
    rate = sizes["light"] / found["copy"]["median"]
    table = Table("what", "MB", "ms", "MB/s", "of a copy")
    ratios = result["ratios"] = {}
    for name, times in found.items():
        size = sizes["whole" if name.endswith("whole") else "light"]
        ratios[name] = times["median"] * rate / size
        cells = (f"{size / 1e6:.1f}", f"{times['median'] * 1e3:.0f}")
        table.row(name, *cells, f"{size / times['median'] / 1e6:.0f}", f"{ratios[name]:.2f}")
    trip = found["export"]["median"] + found["import"]["median"]
    ratios["round_trip"] = trip / (2 * found["copy"]["median"])
    print(f"export and import: {trip * 1e3:.0f} ms, {ratios['round_trip']:.2f} of two copies")


def main() -> None:
    """Measure, print, and keep the result unless it was only a try."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small files, one round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    result = measure(1 if options.quick else options.rounds, SMALL if options.quick else FULL)
    report(result)
    if not options.quick:
        write_result("files", result)


if __name__ == "__main__":
    main()
