"""Supervised fine-tuning: weft/tiny learns to sort digits downwards, which it has never seen.

Start `weft serve` first. Before training no list that is held out comes out right; after the default
150 steps, 10 to 20 seconds on two cores, all do, and their loss falls from 5.2 to below 0.01 a token.
"""

import argparse
import random
from collections import deque

from weft.client import (
    AdamParams,
    APIFuture,
    Datum,
    ForwardBackwardOutput,
    ModelInput,
    SamplingParams,
    ServiceClient,
    TrainingClient,
    schedules,
)

END = 256  # weft/tiny's tokens are bytes; this one ends a text


def prompt_tokens(digits: list[int]) -> list[int]:
    return list(f"sort down {' '.join(map(str, digits))} -> ".encode())


def answer_tokens(digits: list[int]) -> list[int]:
    return [*" ".join(map(str, sorted(digits, reverse=True))).encode(), END]


def example(digits: list[int]) -> Datum:
    """Each token predicts the next; the prompt has no weight, the answer's tokens have 1."""
    prompt, answer = prompt_tokens(digits), answer_tokens(digits)
    tokens = prompt + answer
    weights = [0.0] * (len(prompt) - 1) + [1.0] * len(answer)
    return Datum(
        ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], "weights": weights}
    )


def held_out_loss(training: TrainingClient, lists: list[list[int]]) -> float:
    """The loss of an answer's token on lists that are not trained on."""
    done = training.forward([example(digits) for digits in lists], "cross_entropy")
    num_tokens = sum(len(answer_tokens(digits)) for digits in lists)
    return done.result().metrics["loss:sum"] / num_tokens


def num_right(training: TrainingClient, lists: list[list[int]]) -> int:
    """How many of the lists the model sorts when it takes the likeliest tokens."""
    sampler = training.save_weights_and_get_sampling_client()
    params = SamplingParams(max_tokens=12, temperature=0.0)
    futures = [
        sampler.sample(ModelInput.from_ints(prompt_tokens(digits)), 1, params) for digits in lists
    ]
    return sum(
        future.result().sequences[0].tokens == answer_tokens(digits)
        for digits, future in zip(lists, futures, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    args = parser.parse_args()

    rng = random.Random(0)
    lists = [[i // 1000, i // 100 % 10, i // 10 % 10, i % 10] for i in range(10_000)]
    rng.shuffle(lists)
    held_out, lists = lists[:64], lists[64:]
    with ServiceClient() as service:
        training = service.create_lora_training_client("weft/tiny", rank=args.rank, seed=0)
        before = held_out_loss(training, held_out), num_right(training, held_out)
        under_way: deque[tuple[int, int, APIFuture[ForwardBackwardOutput]]] = deque()
        for step in range(args.steps):
            batch = rng.sample(lists, args.batch)
            rate = args.learning_rate * schedules.warmup(step, 10)
            rate *= schedules.cosine(step, args.steps)
            # Neither call waits: the next batch is on its way while this one is computed.
            loss = training.forward_backward([example(digits) for digits in batch], "cross_entropy")
            training.optim_step(AdamParams(learning_rate=rate))
            under_way.append((step, sum(len(answer_tokens(digits)) for digits in batch), loss))
            while len(under_way) > (2 if step < args.steps - 1 else 0):
                number, num_tokens, future = under_way.popleft()
                loss_sum = future.result().metrics["loss:sum"]
                print(f"step {number}: loss {loss_sum / num_tokens:.3f} a token")
        after = held_out_loss(training, held_out), num_right(training, held_out)
    print(f"held-out loss {before[0]:.3f} -> {after[0]:.3f} a token")
    print(f"held-out lists sorted right {before[1]} -> {after[1]} of {len(held_out)}")


if __name__ == "__main__":
    main()
