"""What does deterministic mode cost on a CPU?

    python bench/deterministic.py

One train step of 16 tenants with 64 tokens each, ranks mixed 4 to 64, on the model of
`train_step.py`, with and without fixed row tiles and per-unit shapes, in alternation.
"""

import tempfile
from pathlib import Path

from harness import Table, spread, write_result
from train_case import NUM_REQUESTS
from train_step import Bench, measure, median_ratio, save_model

TOKENS = 64
ROUNDS = 3
GOAL = 1.15


def run(rounds: int = ROUNDS) -> dict[str, object]:
    """Seconds of both modes and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        benches = {"free": Bench(Path(folder)), "deterministic": Bench(Path(folder), True)}
        works = {
            name: bench.works(bench.tenants(NUM_REQUESTS, has_unembed=False), TOKENS)
            for name, bench in benches.items()
        }
        seconds = measure(
            {
                "free": lambda: benches["free"].train(works["free"]),
                "deterministic": lambda: benches["deterministic"].train(works["deterministic"]),
            },
            rounds,
        )
    return {
        "free_s": spread(seconds["free"]),
        "deterministic_s": spread(seconds["deterministic"]),
        "ratio": median_ratio(seconds["deterministic"], seconds["free"]),
    }


def main() -> None:
    """Measure and print."""
    result = run()
    table = Table("deterministic / free", "goal")
    table.row(f"{result['ratio']:.2f}", f"<= {GOAL}")
    write_result("deterministic", result)


if __name__ == "__main__":
    main()
