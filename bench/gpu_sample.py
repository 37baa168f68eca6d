"""How fast does a GPU sample for many adapters at once?

    python bench/gpu_sample.py [--minutes 3] [--model Qwen3-8B]
    python bench/gpu_sample.py --dry-run     a tiny model on the CPU; figures mean nothing

Qwen3 models with random weights, prompts of 512 random tokens, 128 new ones each, all requests at
once: 1, 32 and 128 of them, on the bare base, with one adapter of rank 16, or with as many as there
are requests, at most 64. Prompts and decoding are timed together and apart: a step without prompt
tokens is a decode step.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gpu_model import MODELS, TINY, random_decoder
from gpu_timing import Deadline
from harness import Table, write_result

from weft.engine.adapters.store import AdapterStore, WeightsVersion
from weft.engine.sampling.generate import Generator
from weft.engine.sampling.kv_cache import KVCache
from weft.engine.sampling.requests import SampleDone, SampleRequest

ORDER = ("Qwen3-8B", "Qwen3-4B", "Qwen3-0.6B")
RANK = 16
MAX_ADAPTERS = 64
PAGE_SIZE = 16
NUM_REQUESTS = (32, 128, 1)
PROMPT, NEW = 512, 128


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Sample for many adapters on a GPU.")
    parser.add_argument("--minutes", type=float, default=3.0, help="begin no row after these")
    parser.add_argument("--model", choices=ORDER, help="this one only")
    parser.add_argument("--dry-run", action="store_true", help="tiny and on the CPU")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        print("skipped: bench/gpu_sample.py needs a CUDA device, or --dry-run")
        return
    deadline = Deadline(arguments.minutes)
    bench: SampleBench
    rows: list[dict[str, Any]] = []
    table = Table("model", "requests", "adapters", "new tok/s", "decode ms", "of base")
    if arguments.dry_run:
        bench = SampleBench("tiny", TINY, torch.device("cpu"), prompt=6, new=3, num_adapters=2)
        for row in bench.rows((2,), deadline, table):
            rows.append(row)
        return
    for name in ORDER:
        if arguments.model in (None, name) and not deadline.is_over:
            bench = SampleBench(name, MODELS[name], torch.device("cuda"))
            rows.extend(bench.rows(NUM_REQUESTS, deadline, table))
            del bench
    write_result("gpu_sample", {"prompt": PROMPT, "new": NEW, "rank": RANK, "rows": rows})


class SampleBench:
    """One model, its cache and its adapters."""

    def __init__(
        self,
        name: str,
        fields: dict[str, object],
        device: torch.device,
        *,
        prompt: int = PROMPT,
        new: int = NEW,
        num_adapters: int = MAX_ADAPTERS,
    ) -> None:
        self.name, self.prompt, self.new = name, prompt, new
        self.model, _ = random_decoder(fields, device)
        widths = sum(site.in_features + site.out_features + 512 for site in self.model.sites)
        self.store = AdapterStore(
            self.model.sites,
            device=device,
            dtype=self.model.dtype,
            state_bytes=RANK * widths * 20,
            weights_bytes=(num_adapters + 1) * RANK * widths * self.model.dtype.itemsize,
            uses_triton=self.model.uses_triton,
        )
        self.versions = [self._version(seed) for seed in range(num_adapters)]

    def rows(
        self, sizes: tuple[int, ...], deadline: Deadline, table: Table
    ) -> Iterator[dict[str, Any]]:
        """A row for each number of requests and adapters."""
        self._measure(min(sizes), 1)  # compiles
        for size in sizes:
            base_s: float | None = None
            for adapters in sorted({0, 1, min(size, len(self.versions))}):
                if deadline.is_over:
                    return
                total_s, decode_s = self._measure(size, adapters)
                base_s = base_s or decode_s
                rate = size * self.new / total_s
                cells = f"{rate:.0f}", f"{decode_s * 1e3:.2f}", f"{decode_s / base_s:.2f}"
                table.row(self.name, size, adapters, *cells)
                yield {
                    "model": self.name,
                    "requests": size,
                    "adapters": adapters,
                    "total_s": total_s,
                    "new_tokens_per_s": rate,
                    "decode_step_s": decode_s,
                }

    def _measure(self, num_requests: int, num_adapters: int) -> tuple[float, float]:
        """Seconds of all requests together, and the median of a decode step of all of them."""
        pages = -(-(self.prompt + self.new) // PAGE_SIZE) + 1
        cache = KVCache(
            self.model.config,
            num_requests * pages,
            PAGE_SIZE,
            device=self.model.device,
            dtype=self.model.dtype,
        )
        generator = Generator(self.model, self.store, cache)
        random = np.random.default_rng(0)
        for key in range(num_requests):
            tokens = random.integers(0, self.model.config.vocab_size, self.prompt)
            version = self.versions[key % num_adapters] if num_adapters else None
            generator.submit(self._request(key, tokens, version))
        outcomes, steps, started = [], [], time.perf_counter()
        while generator.has_work:
            prefilled, decoded = generator.num_prefilled, generator.num_decoded
            before = time.perf_counter()
            outcomes += generator.step()
            is_whole = generator.num_decoded - decoded == num_requests
            if is_whole and generator.num_prefilled == prefilled:
                steps.append(time.perf_counter() - before)
        total = time.perf_counter() - started
        if not all(isinstance(outcome, SampleDone) for outcome in outcomes):
            raise RuntimeError(f"a request failed: {outcomes}")
        return total, float(np.median(steps))

    def _request(
        self, key: int, tokens: np.ndarray, version: WeightsVersion | None
    ) -> SampleRequest:
        return SampleRequest(
            key=key,
            tokens=tokens,
            num_samples=1,
            max_tokens=self.new,
            temperature=1.0,
            seed=key,
            stop_tokens=frozenset(),
            version=version,
        )

    def _version(self, seed: int) -> WeightsVersion:
        run = self.store.create(
            rank=RANK,
            alpha=32.0,
            train_attn=True,
            train_mlp=True,
            train_unembed=False,
            seed=seed,
        )
        version = self.store.retain(run.version)
        self.store.drop(run)
        self.store.version_flat(version).normal_(0, 0.02)
        return version


if __name__ == "__main__":
    main()
