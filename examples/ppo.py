"""PPO: several epochs of minibatches on the same samples, with the ratio clipped.

Start `weft serve` first. Samples cost more than training on them, so each batch of sums is used
for two epochs of two minibatches; clipping the ratio keeps the policy near the samples. In the
default 40 batches, 25 seconds on two cores, right answers rise from 64 % to 81 %; with
--epochs 1 --minibatches 1, which uses every sample once, they rise from 58 % to 67 %.

Source: Schulman et al., "Proximal Policy Optimization Algorithms", 2017, section 3,
https://arxiv.org/abs/1707.06347; without a value function, the baseline is the group's mean reward.
"""

import argparse
import random

import numpy as np

from weft.client import (
    AdamParams,
    Datum,
    ModelInput,
    SampledSequence,
    SamplingClient,
    SamplingParams,
    ServiceClient,
    TrainingClient,
)

END = 256  # weft/tiny's tokens are bytes; this one ends a text


def sample_batch(
    sampler: SamplingClient, sums: list[tuple[int, int]], group_size: int, seed: int
) -> tuple[list[Datum], float]:
    """Datums of a batch of samples, and the share of right answers."""
    params = SamplingParams(max_tokens=5, seed=seed)
    prompts = [list(f"{a}+{b}=".encode()) for a, b in sums]
    futures = [sampler.sample(ModelInput.from_ints(p), group_size, params) for p in prompts]
    data, rewards = [], []
    for (a, b), prompt, future in zip(sums, prompts, futures, strict=True):
        answer = [*str(a + b).encode(), END]
        group = future.result().sequences
        right = np.array([float(sequence.tokens == answer) for sequence in group])
        rewards.append(right.mean())
        for sequence, advantage in zip(group, right - right.mean(), strict=True):
            if advantage:  # a group that agrees teaches nothing
                data.append(datum(prompt, sequence, float(advantage)))
    return data, float(np.mean(rewards))


def datum(prompt: list[int], sequence: SampledSequence, advantage: float) -> Datum:
    """The log-probabilities are those of the sampler, however often the sample is used."""
    zeros = [0.0] * (len(prompt) - 1)
    tokens = prompt + sequence.tokens
    return Datum(
        ModelInput.from_ints(tokens[:-1]),
        {
            "target_tokens": tokens[1:],
            "logprobs": zeros + (sequence.logprobs or []),
            "advantages": zeros + [advantage] * len(sequence.tokens),
        },
    )


def train_epochs(
    training: TrainingClient, data: list[Datum], rng: random.Random, args: argparse.Namespace
) -> tuple[float, float]:
    """Train on every datum once an epoch.

    Returns:
        The KL of the policy to the one that sampled, and the share of clipped tokens, as means
        over the minibatches.
    """
    config = {"clip_low_threshold": 1 - args.clip, "clip_high_threshold": 1 + args.clip}
    size = -(-len(data) // args.minibatches)
    passes = []
    for _ in range(args.epochs):
        order = rng.sample(data, len(data))
        for start in range(0, len(order), size):
            passes.append(training.forward_backward(order[start : start + size], "ppo", config))
            training.optim_step(AdamParams(learning_rate=args.learning_rate))
    metrics = [future.result().metrics for future in passes]  # all were on their way together
    kl = np.mean([found["kl_sample_train_v1:mean"] for found in metrics])
    return float(kl), float(np.mean([found["clip_fraction:mean"] for found in metrics]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--clip", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    args = parser.parse_args()

    rng = random.Random(0)
    with ServiceClient() as service:
        training = service.create_lora_training_client("weft/tiny", rank=8, seed=0)
        shares = []
        for number in range(args.batches):
            sampler = training.save_weights_and_get_sampling_client()
            sums = [(rng.randint(10, 99), rng.randint(10, 99)) for _ in range(args.prompts)]
            data, share = sample_batch(sampler, sums, args.group, seed=number)
            kl, clipped = train_epochs(training, data, rng, args) if data else (0.0, 0.0)
            shares.append(share)
            print(f"batch {number}: {share:.0%} right, KL {kl:.4f}, {clipped:.1%} clipped")
    fifth = max(1, len(shares) // 5)
    print(f"right answers {np.mean(shares[:fifth]):.0%} -> {np.mean(shares[-fifth:]):.0%}")


if __name__ == "__main__":
    main()
