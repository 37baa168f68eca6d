"""What does deterministic mode cost on a CPU?

    python bench/deterministic.py

On the model of `train_step.py`, with and without fixed row tiles and per-unit shapes, in alternation:

    train           one train step of 16 tenants with 64 tokens each, ranks mixed 4 to 64
    decode, N       32 prompts of 128 tokens, 16 new ones each, under N adapters of those ranks
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from harness import Table, spread, write_result
from rounds import measure, median_ratio
from train_case import NUM_REQUESTS
from train_step import VOCAB_SIZE, Bench, save_model

from weft.engine.sampling.generate import Generator
from weft.engine.sampling.kv_cache import KVCache
from weft.engine.sampling.requests import SampleRequest

TOKENS = 64
NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 32, 128, 16
PAGE_SIZE = 16
ROUNDS = 3
GOAL = 1.15  # of train


def run(rounds: int = ROUNDS) -> dict[str, object]:
    """Seconds of both modes and their ratio, for each kind of work."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        benches = {"free": Bench(Path(folder)), "deterministic": Bench(Path(folder), True)}
        kinds: dict[str, Callable[[str, Bench], Callable[[], None]]] = {
            "train": _train,
            "decode, 1 adapter": partial(_decode, num_adapters=1),
            "decode, 16 adapters": partial(_decode, num_adapters=NUM_REQUESTS),
        }
        found: dict[str, object] = {}
        for kind, make in kinds.items():
            works = {mode: make(mode, bench) for mode, bench in benches.items()}
            seconds = measure(works, rounds)
            found[kind] = {
                "free_s": spread(seconds["free"]),
                "deterministic_s": spread(seconds["deterministic"]),
                "ratio": median_ratio(seconds["deterministic"], seconds["free"]),
            }
    return found


def _train(mode: str, bench: Bench) -> Callable[[], None]:
    run_ids = bench.tenants(NUM_REQUESTS, has_unembed=False)
    return partial(bench.train, bench.works(run_ids, TOKENS))


def _decode(mode: str, bench: Bench, num_adapters: int) -> Callable[[], None]:
    run_ids = bench.tenants(NUM_REQUESTS, has_unembed=False)[:num_adapters]
    versions = [bench.runs.run(run_id).run.version for run_id in run_ids]
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, VOCAB_SIZE, (NUM_PROMPTS, PROMPT_TOKENS))
    num_pages = NUM_PROMPTS * -(-(PROMPT_TOKENS + NEW_TOKENS) // PAGE_SIZE)

    def work() -> None:
        cache = KVCache(bench.model.config, 2 * num_pages, PAGE_SIZE)
        generator = Generator(
            bench.model, bench.store, cache, is_deterministic=mode == "deterministic"
        )
        for place, prompt in enumerate(prompts):
            version = versions[place % num_adapters]
            generator.submit(
                SampleRequest(
                    key=place,
                    tokens=prompt,
                    version=version,
                    num_samples=1,
                    max_tokens=NEW_TOKENS,
                    temperature=1.0,
                    seed=place,
                )
            )
        while generator.has_work:
            generator.step()

    return work


def main() -> None:
    """Measure and print."""
    result = run()
    table = Table("work", "deterministic / free", "goal")
    for kind, found in result.items():
        assert isinstance(found, dict)
        table.row(kind, f"{found['ratio']:.2f}", f"<= {GOAL}" if kind == "train" else "")
    write_result("deterministic", result)


if __name__ == "__main__":
    main()
