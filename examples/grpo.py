"""GRPO-style reinforcement learning with a KL penalty: weft/tiny learns to add.

Start `weft serve` first. A token's advantage is the normalised reward of its answer minus
kl * (log-probability under the policy - under the base model), which keeps the policy near the
base. In the default 100 steps, a minute on two cores, right answers rise from 61 % to 73 % at a KL
of 0.055 a token; with --kl 0 they rise to 74 % at a KL of 0.098.

Source: group-normalised rewards: Shao et al., "DeepSeekMath", 2024, section 4.1,
https://arxiv.org/abs/2402.03300; the penalty is put into the advantages.
"""

import argparse
import random
from dataclasses import dataclass

import numpy as np

from weft.client import (
    AdamParams,
    Datum,
    ModelInput,
    SamplingClient,
    SamplingParams,
    ServiceClient,
)

END = 256  # weft/tiny's tokens are bytes; this one ends a text


@dataclass
class Rollout:
    """One sampled answer."""

    prompt: list[int]
    tokens: list[int]
    logprobs: np.ndarray  # of its tokens, when it was sampled
    reward: float
    advantage: float = 0.0


def sample_groups(
    sampler: SamplingClient, sums: list[tuple[int, int]], group_size: int, seed: int
) -> list[list[Rollout]]:
    """A group of answers for each sum; an answer is right to the last token or wrong."""
    prompts = [list(f"{a}+{b}=".encode()) for a, b in sums]
    params = SamplingParams(max_tokens=5, seed=seed)
    futures = [sampler.sample(ModelInput.from_ints(p), group_size, params) for p in prompts]
    groups = []
    for (a, b), prompt, future in zip(sums, prompts, futures, strict=True):
        answer = [*str(a + b).encode(), END]
        groups.append(
            [
                Rollout(prompt, s.tokens, np.array(s.logprobs), float(s.tokens == answer))
                for s in future.result().sequences
            ]
        )
    return groups


def normalise(group: list[Rollout]) -> None:
    """Advantages of one group: how many standard deviations a reward lies above the mean."""
    rewards = np.array([rollout.reward for rollout in group])
    scale = rewards.std() + 1e-6  # a group that agrees teaches nothing
    for rollout, advantage in zip(group, (rewards - rewards.mean()) / scale, strict=True):
        rollout.advantage = float(advantage)


def reference_logprobs(base: SamplingClient, rollouts: list[Rollout]) -> list[np.ndarray]:
    """What the base model gives to every sampled token."""
    futures = [base.compute_logprobs(ModelInput.from_ints(r.prompt + r.tokens)) for r in rollouts]
    return [
        np.array(future.result()[len(rollout.prompt) :], np.float32)
        for rollout, future in zip(rollouts, futures, strict=True)
    ]


def datum(rollout: Rollout, advantages: np.ndarray) -> Datum:
    zeros = np.zeros(len(rollout.prompt) - 1, np.float32)
    tokens = rollout.prompt + rollout.tokens
    return Datum(
        ModelInput.from_ints(tokens[:-1]),
        {
            "target_tokens": tokens[1:],
            "logprobs": np.concatenate([zeros, rollout.logprobs]),
            "advantages": np.concatenate([zeros, advantages]),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--kl", type=float, default=0.5)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    args = parser.parse_args()

    rng = random.Random(0)
    with ServiceClient() as service:
        base = service.create_sampling_client(base_model="weft/tiny")
        training = service.create_lora_training_client("weft/tiny", rank=8, seed=0)
        shares: list[float] = []
        kls: list[float] = []
        for step in range(args.steps):
            sampler = training.save_weights_and_get_sampling_client()
            sums = [(rng.randint(10, 99), rng.randint(10, 99)) for _ in range(args.prompts)]
            groups = sample_groups(sampler, sums, args.group, seed=step)
            for group in groups:
                normalise(group)
            rollouts = [rollout for group in groups for rollout in group]
            data, differences = [], []
            for rollout, reference in zip(
                rollouts, reference_logprobs(base, rollouts), strict=True
            ):
                differences.append(rollout.logprobs - reference)
                advantages = (rollout.advantage - args.kl * differences[-1]) / len(rollouts)
                data.append(datum(rollout, advantages))
            training.forward_backward(data, "importance_sampling")
            training.optim_step(AdamParams(learning_rate=args.learning_rate)).result()
            shares.append(sum(rollout.reward for rollout in rollouts) / len(rollouts))
            kls.append(float(np.concatenate(differences).mean()))
            print(f"step {step}: {shares[-1]:.0%} right, KL to the base {kls[-1]:.4f} a token")
    fifth = max(1, len(shares) // 5)  # the first and the last fifth of the run
    print(f"KL to the base {np.mean(kls[:fifth]):.4f} -> {np.mean(kls[-fifth:]):.4f} a token")
    print(f"right answers {np.mean(shares[:fifth]):.0%} -> {np.mean(shares[-fifth:]):.0%}")


if __name__ == "__main__":
    main()
