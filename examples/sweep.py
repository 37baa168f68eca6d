"""Sixteen tenants at once: a sweep of learning rates and ranks, and its plot.

Start `weft serve` first. Every arm is a tenant with a session of its own, and teaches weft/tiny to
sort digits downwards. The server packs whatever is ready from all of them into its next batch: the
default 60 steps of 16 arms take 40 seconds on two cores, 1.5 to 1.9 times as fast as one arm after
the other. The best rate hardly depends on the rank.

The plot needs matplotlib; --plot "" leaves it out.
"""

import argparse
import random
import time
from dataclasses import dataclass

from weft.client import (
    AdamParams,
    APIFuture,
    Datum,
    ForwardBackwardOutput,
    ModelInput,
    ServiceClient,
    TrainingClient,
    schedules,
)

END = 256  # weft/tiny's tokens are bytes; this one ends a text
RANKS = (2, 8, 32, 128)
LEARNING_RATES = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass
class Arm:
    """One run of the sweep."""

    rank: int
    learning_rate: float
    service: ServiceClient
    training: TrainingClient
    held_out_loss: float = float("nan")


def example(digits: list[int]) -> Datum:
    """A list to sort; only the answer's tokens have a weight."""
    prompt = list(f"sort down {' '.join(map(str, digits))} -> ".encode())
    answer = [*" ".join(map(str, sorted(digits, reverse=True))).encode(), END]
    tokens = prompt + answer
    weights = [0.0] * (len(prompt) - 1) + [1 / len(answer)] * len(answer)
    return Datum(
        ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], "weights": weights}
    )


def create_arm(rank: int, learning_rate: float) -> Arm:
    service = ServiceClient(user_metadata={"arm": f"rank {rank}, rate {learning_rate:g}"})
    training = service.create_lora_training_client("weft/tiny", rank=rank, seed=0)
    return Arm(rank, learning_rate, service, training)


def train(arms: list[Arm], batches: list[list[Datum]]) -> None:
    """Keep two steps of every arm under way; no arm waits for another."""
    under_way: list[list[APIFuture[ForwardBackwardOutput]]] = [[] for _ in arms]
    for step, batch in enumerate(batches):
        factor = schedules.warmup(step, 5) * schedules.cosine(step, len(batches))
        for arm, futures in zip(arms, under_way, strict=True):
            futures.append(arm.training.forward_backward(batch, "cross_entropy"))
            arm.training.optim_step(AdamParams(learning_rate=arm.learning_rate * factor))
            if len(futures) > 2:
                futures.pop(0).result()


def measure(arms: list[Arm], data: list[Datum]) -> None:
    futures = [arm.training.forward(data, "cross_entropy") for arm in arms]
    for arm, future in zip(arms, futures, strict=True):
        arm.held_out_loss = future.result().metrics["loss:sum"] / len(data)


def print_table(arms: list[Arm]) -> None:
    print("held-out loss a token".ljust(24) + "".join(f"rate {r:<9g}" for r in LEARNING_RATES))
    for rank in RANKS:
        row = [f"{arm.held_out_loss:<14.3f}" for arm in arms if arm.rank == rank]
        print(f"rank {rank}".ljust(24) + "".join(row))


def draw(arms: list[Arm], path: str) -> None:
    """Held-out loss over the learning rate, a line for each rank."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for rank in RANKS:
        losses = [arm.held_out_loss for arm in arms if arm.rank == rank]
        axes.plot(LEARNING_RATES, losses, marker="o", label=f"rank {rank}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="held-out loss a token")
    axes.set(title=f"{len(arms)} tenants at once on weft/tiny")
    axes.legend()
    figure.savefig(path, dpi=120)
    print(f"plot in {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--plot", default="sweep.png", help="where it goes; '' for none")
    args = parser.parse_args()

    rng = random.Random(0)
    lists = [[i // 1000, i // 100 % 10, i // 10 % 10, i % 10] for i in range(10_000)]
    rng.shuffle(lists)
    held_out = [example(digits) for digits in lists[:64]]
    batches = [
        [example(digits) for digits in rng.sample(lists[64:], args.batch)]
        for _ in range(args.steps)
    ]
    arms = [create_arm(rank, rate) for rank in RANKS for rate in LEARNING_RATES]
    start = time.monotonic()
    train(arms, batches)
    measure(arms, held_out)
    print(f"{len(arms)} arms, {args.steps} steps each: {time.monotonic() - start:.1f} s")
    print_table(arms)
    best = min(arms, key=lambda arm: arm.held_out_loss)
    print(f"best: rank {best.rank}, learning rate {best.learning_rate:g}")
    for arm in arms:
        arm.service.close()
    if args.plot:
        draw(arms, args.plot)


if __name__ == "__main__":
    main()
