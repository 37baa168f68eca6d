"""What does it cost to run a model through transformers' code instead of our own decoder?

    python bench/fallback.py [--quick]        about ten minutes on two cores

One random Qwen3 (width 512, 8 layers, vocabulary 151,936; 103 million parameters), served three ways:

    native       our own decoder
    packed       transformers' modelling code, our linears and attention, packed batches
    sequential   the same code one sequence at a time, its own attention and cache

Through the client: sixteen training requests of four tenants (rank 8, layers only), and eight
samples of as many requests at once. Every round takes all three, so that a slow minute of the
machine slows all of them; ratios are of one round. `--quick` takes a tiny model and few tokens: it
says whether the bench runs, nothing about speed, and writes nothing.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import Table, save_random_qwen3, spread, write_result

from weft.client import Datum, ModelInput, SamplingParams, ServiceClient, TrainingClient
from weft.engine import Engine

WAYS: dict[str, dict[str, Any]] = {
    "native": {"modelling": "native"},
    "packed": {"modelling": "transformers"},
    "sequential": {"modelling": "transformers", "is_deterministic": True},
}
NUM_TENANTS, NUM_REQUESTS, NUM_SAMPLES, RANK = 4, 16, 8, 8
WAIT_S = 600


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is measured."""

    model: dict[str, int]
    memory_bytes: int
    train_tokens: tuple[int, ...]  # of a request
    prompt_tokens: int
    new_tokens: int
    rounds: int


FULL = Size(
    model={
        "width": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 151_936,
        "max_position_embeddings": 4096,
    },
    memory_bytes=6 << 30,
    train_tokens=(64, 512),
    prompt_tokens=128,
    new_tokens=32,
    rounds=5,
)
QUICK = Size(
    model={
        "width": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "vocab_size": 512,
        "max_position_embeddings": 512,
    },
    memory_bytes=1 << 30,
    train_tokens=(32,),
    prompt_tokens=16,
    new_tokens=8,
    rounds=2,
)


class Side:
    """One way of running the model, and its tenants."""

    def __init__(self, service: ServiceClient, size: Size) -> None:
        (card,) = service.get_server_capabilities().supported_models
        self.runs_on = card.runs_on
        self._size = size
        self._vocab_size = size.model["vocab_size"]
        self._sampler = service.create_sampling_client(base_model=card.model_name)
        self._runs: list[TrainingClient] = [
            service.create_lora_training_client(
                card.model_name, rank=RANK, seed=seed, train_unembed=False
            )
            for seed in range(NUM_TENANTS)
        ]

    def train(self, tokens_each: int) -> float:
        """Tokens per second of all requests at once, optimizer steps left out."""
        random = np.random.default_rng(0)
        start = time.perf_counter()
        pending = [
            self._runs[index % NUM_TENANTS].forward_backward(
                [self._datum(random, tokens_each)], "cross_entropy"
            )
            for index in range(NUM_REQUESTS)
        ]
        for future in pending:
            future.result(WAIT_S)
        return NUM_REQUESTS * tokens_each / (time.perf_counter() - start)

    def sample(self) -> float:
        """New tokens per second of all samples at once, their prompts included in the time."""
        size, random = self._size, np.random.default_rng(1)
        params = SamplingParams(max_tokens=size.new_tokens, seed=0, stop=[])
        start = time.perf_counter()
        pending = [
            self._sampler.sample(
                ModelInput.from_ints(
                    random.integers(0, self._vocab_size, size.prompt_tokens).tolist()
                ),
                1,
                params,
            )
            for _ in range(NUM_SAMPLES)
        ]
        for future in pending:
            future.result(WAIT_S)
        return NUM_SAMPLES * size.new_tokens / (time.perf_counter() - start)

    def _datum(self, random: np.random.Generator, num_tokens: int) -> Datum:
        tokens = random.integers(0, self._vocab_size, num_tokens + 1)
        weights = np.ones(num_tokens, np.float32)
        return Datum(
            ModelInput.from_ints(tokens[:-1].tolist()),
            {"target_tokens": tokens[1:], "weights": weights},
        )


def measure(sides: dict[str, Side], size: Size) -> dict[str, dict[str, list[float]]]:
    """Tokens per second: case -> way -> one number a round; the first round is not kept."""
    cases: dict[str, Callable[[Side], float]] = {
        f"train {tokens}": partial(Side.train, tokens_each=tokens) for tokens in size.train_tokens
    }
    cases["sample"] = Side.sample
    speeds: dict[str, dict[str, list[float]]] = {case: {way: [] for way in sides} for case in cases}
    for number in range(size.rounds + 1):
        for case, run in cases.items():
            for way, side in sides.items():
                speed = run(side)
                if number:
                    speeds[case][way].append(speed)
    return speeds


def report(speeds: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Print tokens per second and the ratio to our own decoder; returns both."""
    table = Table("case", "way", "tokens/s", "of native", "p20", "p80")
    result: dict[str, Any] = {}
    for case, ways in speeds.items():
        native = np.array(ways["native"])
        for way, numbers in ways.items():
            ratio = spread((np.array(numbers) / native).tolist())
            result[f"{case}, {way}"] = {"tokens_per_s": spread(numbers), "of_native": ratio}
            cells = [f"{ratio[key]:.2f}" for key in ("median", "p20", "p80")]
            table.row(case, way, f"{np.median(numbers):.0f}", *cells)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few tokens")
    size = QUICK if parser.parse_args().quick else FULL
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "model"
        width, fields = size.model["width"], dict(size.model)
        fields.pop("width")
        num_parameters = save_random_qwen3(path, width=width, **fields)
        print(f"{num_parameters / 1e6:.1f} M parameters")
        sides: dict[str, Side] = {}
        for way, settings in WAYS.items():
            memory_bytes = size.memory_bytes
            engine = stack.enter_context(Engine(str(path), memory_bytes=memory_bytes, **settings))
            sides[way] = Side(stack.enter_context(engine.client()), size)
            assert sides[way].runs_on == way
        speeds = measure(sides, size)
    result = report(speeds) | {"parameters": num_parameters}
    if size is not QUICK:
        write_result("fallback", result)


if __name__ == "__main__":
    main()
