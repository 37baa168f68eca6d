"""How long does a fork take, and what would it take without sharing?

    python bench/fork.py [--quick]

One run after a training step and with a gradient on top, on a random 103 M Qwen3 with a real
vocabulary, adapters on every layer, at ranks 8 to 256. By turns:

fork       `TrainingClient.fork()`, from the call to the client of the new run
saved      `save_state` and `create_training_client_from_state_with_optimizer`: the same without
           forks, through a file, and without the gradient
eager      what sharing spares: master weights, moments and gradient copied within the state arena,
           and the compute weights within theirs, in this process on one thread
debt       the first forward_backward of a fork less its second one: the copy, once it is paid

The worker is a child process; the files go to a temporary directory.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import Table, save_random_qwen3, spread, write_result

from weft.client import AdamParams, Datum, ModelInput, ServiceClient, TrainingClient
from weft.engine import Engine
from weft.engine.adapters.states import MASTER, MOMENT1, MOMENT2
from weft.engine.adapters.store import AdapterStore
from weft.engine.model.config import ModelConfig

RANKS = (8, 32, 64, 128, 256)
VOCAB_SIZE = 151_936
GIB = 1 << 30


def make_data(num_tokens: int = 64) -> list[Datum]:
    """One datum of random tokens."""
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, num_tokens + 1)
    return [Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})]


def timed(call: Callable[[], TrainingClient]) -> tuple[float, TrainingClient]:
    """Milliseconds of a call, and the run that it made."""
    begin = time.perf_counter()
    made = call()
    return 1000 * (time.perf_counter() - begin), made


def train_ms(run: TrainingClient, data: list[Datum]) -> float:
    """Milliseconds of one forward_backward."""
    begin = time.perf_counter()
    run.forward_backward(data, "cross_entropy").result()
    return 1000 * (time.perf_counter() - begin)


def measure_served(
    service: ServiceClient, model: str, rank: int, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of forks and of the way through a file, by turns."""
    data = make_data()
    run = service.create_lora_training_client(model, rank=rank, seed=0, train_unembed=False)
    run.forward_backward(data, "cross_entropy").result()
    run.optim_step(AdamParams(learning_rate=1e-4)).result()
    run.forward_backward(data, "cross_entropy").result()
    taken: dict[str, list[float]] = {"fork": [], "saved": [], "debt": []}
    rest = service.create_rest_client()

    def by_file() -> TrainingClient:
        path = run.save_state("bench", overwrite=True).result().path
        return service.create_training_client_from_state_with_optimizer(path)

    for number in range(rounds + 1):
        fork_ms, fork = timed(run.fork)
        first_ms = train_ms(fork, data)
        debt_ms = first_ms - train_ms(fork, data)
        saved_ms, resumed = timed(by_file)
        resumed.close()
        fork.close()
        if number:  # the first round warms up
            for name, value in (("fork", fork_ms), ("saved", saved_ms), ("debt", debt_ms)):
                taken[name].append(value)
    rest.delete_checkpoint_from_tinker_path(f"weft://{run.model_id}/weights/bench").result()
    run.close()
    return taken


def measure_eager(config: ModelConfig, rank: int, rounds: int) -> tuple[list[float], int]:
    """Milliseconds of a fork that copies at once, and the bytes of a run's state."""
    sites = config.sites()
    widths = sum(site.in_features + site.out_features for site in sites if site.layer >= 0)
    elements = int(1.1 * rank * widths)  # rows are padded a little
    store = AdapterStore(
        sites,
        device="cpu",
        dtype=torch.float32,
        state_bytes=2 * 5 * 4 * elements,
        weights_bytes=3 * 4 * elements,
    )
    run, copy = (
        store.create(
            rank=rank, alpha=32.0, train_attn=True, train_mlp=True, train_unembed=False, seed=0
        )
        for _ in range(2)
    )
    planes = (MASTER, MOMENT1, MOMENT2, run.gradient_plane)
    taken = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        for plane in planes:
            store.writable(copy, plane).copy_(store.flat(run, plane))
        store.version_flat(copy.version).copy_(store.version_flat(run.version))
        taken.append(1000 * (time.perf_counter() - begin))
    return taken[1:], 5 * 4 * store.flat(run, MASTER).numel()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ranks 8 and 64, few rounds")
    parser.add_argument("--memory-gib", type=int, default=12, help="of the engine")
    options = parser.parse_args()
    ranks, rounds = ((8, 64), 3) if options.quick else (RANKS, 15)
    torch.set_num_threads(1)
    table = Table("rank", "state MB", "fork ms", "saved ms", "eager ms", "debt ms", "saved/fork")
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        shape = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
        num_parameters = save_random_qwen3(
            Path(folder) / "model",
            width=512,
            vocab_size=VOCAB_SIZE,
            num_hidden_layers=8,
            intermediate_size=1536,
            **shape,
        )
        model = str(Path(folder) / "model")
        config = ModelConfig.from_directory(Path(model))
        print(f"{num_parameters / 1e6:.0f} M parameters")
        with (
            Engine(
                model,
                isolate=True,
                memory_bytes=options.memory_gib * GIB,
                state_dir=f"{folder}/state",
            ) as engine,
            engine.client() as service,
        ):
            for rank in ranks:
                taken = measure_served(service, model, rank, rounds)
                taken["eager"], num_bytes = measure_eager(config, rank, rounds)
                found = {name: spread(values) for name, values in taken.items()}
                ratio = found["saved"]["median"] / found["fork"]["median"]
                names = ("fork", "saved", "eager", "debt")
                shown = [f"{found[name]['median']:.2f}" for name in names]
                table.row(rank, f"{num_bytes / 1e6:.0f}", *shown, f"{ratio:.0f}")
                result[str(rank)] = {"state_bytes": num_bytes, "saved_per_fork": ratio, **found}
    write_result("fork", {"parameters": num_parameters, "ranks": result})


if __name__ == "__main__":
    main()
